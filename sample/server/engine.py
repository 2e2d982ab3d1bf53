"""Continuous batching: one thread decodes for all requests, which queue for a row of the Decoder.

    submit -> queue (bounded) -> a row of the Decoder -> deltas, delivered once a step

Between two steps rows that ended are freed and admit the next of the queue, so that no request
waits for the longest answer of a batch; and where a prompt's own logprobs are asked for, a part of
it is scored. The text of a row depends on its own request alone (the Decoder's promise). Source: Yu
et al. 2022 (Orca), section 3.2, iteration-level scheduling.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.errors import UserError
from common.inference.decoder import Decoder, Token
from common.inference.scoring import score_tokens
from common.models.config import GenerateConfig
from sample.server.protocol import APIError
from sample.text.detokenizer import Detokenizer, TextDelta

log = logging.getLogger(__name__)

# Prefilled between two steps, while running answers wait: a second at 124 M parameters, two cores.
PREFILL_TOKENS = 512
# Upper bounds in seconds: from a tiny network's first token to a long wait in the queue.
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FAULT = "The server failed while it was generating; its log says why. It has to be started again."

CallInLoop = Callable[[Callable[[], None]], object]


@dataclass(eq=False, kw_only=True)
class Job:
    """What one row is to generate: ``receive`` gets its deltas until one ``is_last``."""

    prompt: Sequence[int]  # in ids
    config: GenerateConfig
    detokenizer: Detokenizer  # of this row alone
    receive: Callable[[TextDelta], None]
    top_logprobs: int = 0  # likeliest tokens to name beside each that was chosen
    scores_prompt: bool = False  # its tokens come first, each with its logprob
    generates: bool = True  # or nothing comes behind the prompt's tokens
    cancelled: bool = False


class Metrics:
    """What the server counts from its start, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        labels = ("path", "status")
        self.requests = counter("quern_requests", "Requests that were answered, by status.", labels)
        self.prompt_tokens = counter("quern_prompt_tokens", "Tokens of prompts that were read.")
        self.generated_tokens = counter("quern_generated_tokens", "Tokens that were generated.")
        self.time_to_first_token = Histogram(
            "quern_time_to_first_token_seconds", "From a request's arrival to its first text.",
            buckets=TTFT_BOUNDS_S, registry=self.registry,
        )  # fmt: skip


class Engine:
    """A Decoder, the thread that owns it, and the queue for its rows."""

    def __init__(self, decoder: Decoder, *, n_rows: int, max_waiting: int) -> None:
        self._decoder, self.metrics = decoder, Metrics()
        self._capacity = n_rows + max_waiting
        self._changed = threading.Condition()  # guards all below
        self.waiting: deque[Job] = deque()  # without a row
        self.rows: dict[int, Job] = {}
        self._free = list(range(n_rows - 1, -1, -1))  # the lowest row last: taken first
        # rows whose prompts are scored: what does it, part by part, and the tokens so far
        self._scoring: dict[int, tuple[Iterator[list[Token]], list[Token]]] = {}
        self._ended = False
        self._thread: threading.Thread | None = None
        self.closed: str | None = None  # why no requests are accepted, as a sentence
        self.fault: str | None = None  # why the engine failed
        gauge = partial(Gauge, registry=self.metrics.registry)
        gauge("quern_rows", "Rows there are.").set(n_rows)
        gauge("quern_rows_busy", "Rows that generate.").set_function(lambda: len(self.rows))
        gauge("quern_up", "1 while the engine works.").set_function(lambda: self.closed is None)
        queue_length = gauge("quern_queue_length", "Answers that wait for a row.")
        queue_length.set_function(lambda: len(self.waiting))

    def start(self, call_in_loop: CallInLoop) -> None:
        """Begin to decode; deltas are received inside ``call_in_loop``, once a step."""
        run = partial(self._run, call_in_loop)
        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of ``jobs``, or none and raise APIError: 429 without room, 503 when closed."""
        with self._changed:
            if self.closed is not None:
                raise APIError(self.closed, status=503, code="unavailable")
            if len(self.waiting) + len(self.rows) + len(jobs) > self._capacity:
                raise APIError(
                    "All rows are busy and the queue is full: try again in a moment.",
                    status=429, code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},  # rows get free often, and asking costs little
                )  # fmt: skip
            self.waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Free the places of ``jobs`` in the queue, and their rows before the next step."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                if job in self.waiting:
                    self.waiting.remove(job)

    def refuse(self, why: str) -> None:
        """Accept no more requests; those accepted go on."""
        with self._changed:
            self.closed = self.closed or why

    def close(self, why: str, timeout_s: float = 5.0) -> None:
        """End every request with the sentence ``why``, then the thread."""
        self.refuse(why)
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, call_in_loop: CallInLoop) -> None:
        try:
            while self._await_work():
                self._admit_waiting()
                if deltas := self._score_prompt() + self._step():
                    call_in_loop(partial(_deliver, deltas))
        except Exception as error:  # whatever it was, the clients are to be told
            log.exception("The engine stopped.")
            # such as scores that are no numbers: a sentence already
            self.fault = error.message if isinstance(error, UserError) else FAULT
        with self._changed:
            self.closed = self.fault or self.closed
            jobs = [*self.rows.values(), *self.waiting]
            self.rows.clear()
            self.waiting.clear()
        if jobs:
            call_in_loop(partial(_deliver, [(job, TextDelta(error=self.closed)) for job in jobs]))

    def _await_work(self) -> bool:
        with self._changed:
            while not (self.waiting or self.rows or self._ended):
                self._changed.wait()
            return not self._ended

    def _free_row(self, row: int) -> None:
        self._decoder.release(row)
        self._scoring.pop(row, None)
        with self._changed:
            del self.rows[row]
            self._free.append(row)

    def _admit_waiting(self) -> None:
        for row in [row for row, job in self.rows.items() if job.cancelled]:
            self._free_row(row)
        n_prefilled = 0
        while n_prefilled < PREFILL_TOKENS:
            with self._changed:
                if not (self.waiting and self._free):
                    return
                job, row = self.waiting.popleft(), self._free.pop()
                self.rows[row] = job
            self.metrics.prompt_tokens.inc(len(job.prompt))
            if job.scores_prompt:
                parts = score_tokens(self._decoder.cache, row, job.prompt, n_top=job.top_logprobs)
                self._scoring[row] = parts, []
            else:
                self._decoder.admit(row, job.prompt, job.config, job.top_logprobs)
                n_prefilled += max(1, len(job.prompt))

    def _score_prompt(self) -> list[tuple[Job, TextDelta]]:
        """Score one more part of the first prompt that is to be scored; where it was all, go on."""
        if not self._scoring:
            return []
        row, (parts, tokens) = next(iter(self._scoring.items()))
        for part in parts:
            tokens += part
            return []
        del self._scoring[row]
        job = self.rows[row]
        delta = job.detokenizer.echo(job.prompt, tokens)
        if not job.generates:
            self._free_row(row)
            return [(job, replace(delta, finish_reason="length"))]
        self._decoder.admit(row, job.prompt, job.config, job.top_logprobs)
        return [(job, delta)]

    def _step(self) -> list[tuple[Job, TextDelta]]:
        tokens = self._decoder.step() if self.rows else {}
        deltas = []
        for row, token in tokens.items():
            job = self.rows[row]
            delta = job.detokenizer.push(token)
            if delta.is_last:
                self._free_row(row)
            if delta.text or delta.tokens or delta.is_last:
                deltas.append((job, delta))
        self.metrics.generated_tokens.inc(len(tokens))
        return deltas


def _deliver(deltas: Sequence[tuple[Job, TextDelta]]) -> None:
    for job, delta in deltas:
        if not job.cancelled:
            job.receive(delta)
