"""What the server counts, as text that Prometheus reads.

Each number is written by one thread only: those of tokens by the engine's, the rest by the event
loop's. Source of the format: prometheus.io, "Exposition formats", text format 0.0.4.
"""

from bisect import bisect_left
from collections import Counter, deque

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper bounds in seconds: from a tiny network's first token to a long wait in the queue.
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SPEED_WINDOW_S = 10.0


class Counters:
    """Counts since the server started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0
        self._ttft_counts = [0] * (len(TTFT_BOUNDS_S) + 1)  # the last: beyond every bound
        self._ttft_sum_s = 0.0
        self._steps: deque[tuple[float, int]] = deque()

    def generated(self, n_tokens: int, now_s: float) -> None:
        """Note that a step ended at ``now_s`` with ``n_tokens`` new tokens."""
        self.n_generated_tokens += n_tokens
        self._steps.append((now_s, n_tokens))
        while self._steps[0][0] < now_s - SPEED_WINDOW_S:
            self._steps.popleft()

    def first_token(self, seconds: float) -> None:
        """Note how long a request waited for its first token."""
        self._ttft_counts[bisect_left(TTFT_BOUNDS_S, seconds)] += 1
        self._ttft_sum_s += seconds

    def tokens_per_second(self, now_s: float) -> float:
        """Return the speed over the last SPEED_WINDOW_S seconds."""
        # a copy in one call: the engine's thread appends meanwhile
        recent = [n for at, n in self._steps.copy() if at >= now_s - SPEED_WINDOW_S]
        return sum(recent) / SPEED_WINDOW_S

    def text(self, *, n_waiting: int, n_busy: int, n_rows: int, up: bool, now_s: float) -> str:
        """Return all of it in Prometheus' text format."""
        lines = [
            *_metric("quern_up", "gauge", "1 while the engine works.", {"": int(up)}),
            *_metric(
                "quern_requests_total", "counter", "Requests that were answered, by status.",
                {
                    f'{{path="{path}",status="{status}"}}': count
                    for (path, status), count in sorted(self.requests.items())
                },
            ),
            *_metric(
                "quern_prompt_tokens_total", "counter", "Tokens of prompts that were read.",
                {"": self.n_prompt_tokens},
            ),
            *_metric(
                "quern_generated_tokens_total", "counter", "Tokens that were generated.",
                {"": self.n_generated_tokens},
            ),
            *_metric(
                "quern_tokens_per_second", "gauge",
                f"Tokens generated a second, over the last {SPEED_WINDOW_S:.0f} seconds.",
                {"": self.tokens_per_second(now_s)},
            ),
            *_metric("quern_queue_length", "gauge", "Answers that wait for a row.",
                     {"": n_waiting}),
            *_metric("quern_rows_busy", "gauge", "Rows that generate.", {"": n_busy}),
            *_metric("quern_rows", "gauge", "Rows there are.", {"": n_rows}),
            *_metric(
                "quern_time_to_first_token_seconds", "histogram",
                "From a request's arrival to its first text.", self._ttft(),
            ),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _ttft(self) -> dict[str, float]:
        samples: dict[str, float] = {}
        so_far = 0
        bounds = [*(f"{bound:g}" for bound in TTFT_BOUNDS_S), "+Inf"]
        for bound, count in zip(bounds, self._ttft_counts, strict=True):
            so_far += count
            samples[f'_bucket{{le="{bound}"}}'] = so_far
        return samples | {"_sum": self._ttft_sum_s, "_count": so_far}


def _metric(name: str, kind: str, meaning: str, samples: dict[str, float]) -> list[str]:
    head = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{label} {value!r}" for label, value in samples.items()]
