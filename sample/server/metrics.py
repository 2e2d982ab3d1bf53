"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Upper bounds in seconds: from a tiny network's first token to a long wait in the queue.
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts since the server started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "quern_requests", "Requests that were answered, by status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "quern_prompt_tokens", "Tokens of prompts that were read.", registry=self.registry
        )
        self.generated_tokens = Counter(
            "quern_generated_tokens", "Tokens that were generated.", registry=self.registry
        )
        self.time_to_first_token = Histogram(
            "quern_time_to_first_token_seconds", "From a request's arrival to its first text.",
            buckets=TTFT_BOUNDS_S, registry=self.registry,
        )  # fmt: skip
        self.up = Gauge("quern_up", "1 while the engine works.", registry=self.registry)
        self.queue_length = Gauge(
            "quern_queue_length", "Answers that wait for a row.", registry=self.registry
        )
        self.rows_busy = Gauge("quern_rows_busy", "Rows that generate.", registry=self.registry)
        self.rows = Gauge("quern_rows", "Rows there are.", registry=self.registry)
