"""One thread decodes for all: requests wait their turn, get a row, and hear what it says.

    submit -> waiting (bounded) -> a row of the Decoder -> pieces, posted once a step

Continuous batching: between two steps rows that ended are freed and those who wait get them, so
nobody waits for the longest answer of a batch. What a row says depends on its own request alone;
that is the Decoder's promise. Source: Yu et al. 2022 (Orca), section 3.2, iteration-level
scheduling.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from common.errors import UserError
from common.inference.config import GenerateConfig
from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.server.metrics import Counters
from sample.text.detokenizer import Piece, Reading

log = logging.getLogger(__name__)

# Prompts read between two steps: those who already listen wait for it. About a second at 124 M
# parameters on two cores.
PREFILL_TOKENS = 512
FAULT = "The server failed while it was generating; its log says why. It has to be started again."


class RowDecoder(Protocol):
    """What the engine needs of common.inference.decoder.Decoder."""

    def admit(
        self, row: int, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
    ) -> None:
        """Read a prompt into a free row."""

    def step(self) -> dict[int, Token]:
        """Return the next token of every busy row."""

    def release(self, row: int) -> None:
        """Make a row free."""


class BusyError(Exception):
    """The queue is full."""


class ClosedError(Exception):
    """No more requests are taken; the message is a sentence that says why."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row is to generate: a prompt in ids, how, until which texts."""

    prompt: Sequence[int]
    config: GenerateConfig
    stops: tuple[str, ...] = ()
    n_top: int = 0  # likeliest tokens to name beside each that was chosen


@dataclass(eq=False)
class Ticket:
    """A request that was taken: ``receive`` gets its pieces, the last of which says so."""

    request: Request
    receive: Callable[[Piece], None]
    reading: Reading
    cancelled: bool = field(default=False)


class Engine:
    """A Decoder, the thread that owns it, and the requests that wait for a row."""

    def __init__(
        self,
        decoder: RowDecoder,
        tokenizer: Tokenizer,
        *,
        n_rows: int,
        max_waiting: int,
        counters: Counters,
        post: Callable[[Callable[[], None]], object] = lambda call: call(),
    ) -> None:
        """Pieces are received inside ``post``, once a step: a loop's call_soon_threadsafe."""
        self._decoder, self._tokenizer, self._post = decoder, tokenizer, post
        self._capacity = n_rows + max_waiting
        self._counters = counters
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[Ticket] = deque()
        self._rows: dict[int, Ticket] = {}
        self._free = list(range(n_rows - 1, -1, -1))  # the lowest row last: taken first
        self._closed: str | None = None
        self._ended = False
        self.fault: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    @property
    def closed(self) -> str | None:
        """Why no requests are taken, as a sentence, or None."""
        return self._closed

    @property
    def n_waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def n_busy(self) -> int:
        """Rows in use."""
        return len(self._rows)

    def submit(
        self, requests: Sequence[tuple[Request, Callable[[Piece], None]]]
    ) -> tuple[Ticket, ...]:
        """Take all of ``requests``, each with the function that receives its pieces, or none.

        Raises: BusyError when the queue has no room for them, ClosedError after ``refuse``.
        """
        tickets = tuple(
            Ticket(
                request,
                receive,
                Reading(self._tokenizer, request.config.max_new_tokens, request.stops),
            )
            for request, receive in requests
        )
        with self._changed:
            if self._closed is not None:
                raise ClosedError(self._closed)
            if len(self._waiting) + len(self._rows) + len(tickets) > self._capacity:
                raise BusyError
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Free the places of ``tickets``; those that ended are left alone."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True  # a row is freed before the next step
                if ticket in self._waiting:
                    self._waiting.remove(ticket)

    def refuse(self, why: str) -> None:
        """Take no more requests; those taken go on."""
        with self._changed:
            self._closed = self._closed or why

    def close(self, why: str, timeout_s: float = 5.0) -> None:
        """End every request with the sentence ``why``, then the thread."""
        self.refuse(why)
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while self._await_work():
                self._free_cancelled()
                self._admit_waiting()
                self._step()
        except UserError as error:  # such as scores that are no numbers: a sentence already
            log.exception("The engine stopped.")
            self.fault = error.message
        except Exception:  # whatever it was, those who wait must hear of it
            log.exception("The engine stopped.")
            self.fault = FAULT
        self._end_all()

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._rows or self._ended):
                self._changed.wait()
            return not self._ended

    def _free_cancelled(self) -> None:
        for row in [row for row, ticket in self._rows.items() if ticket.cancelled]:
            self._free_row(row)

    def _free_row(self, row: int) -> None:
        self._decoder.release(row)
        with self._changed:
            del self._rows[row]
            self._free.append(row)

    def _admit_waiting(self) -> None:
        n_read = 0
        while n_read < PREFILL_TOKENS:
            with self._changed:
                if not (self._waiting and self._free):
                    return
                ticket, row = self._waiting.popleft(), self._free.pop()
                self._rows[row] = ticket
            request = ticket.request
            self._decoder.admit(row, request.prompt, request.config, request.n_top)
            n_read += max(1, len(request.prompt))
            self._counters.n_prompt_tokens += len(request.prompt)

    def _step(self) -> None:
        if not self._rows:
            return
        news = []
        tokens = self._decoder.step()
        for row, token in tokens.items():
            ticket = self._rows[row]
            piece = ticket.reading.take(token)
            if piece.is_last:
                self._free_row(row)
            if (piece.text or piece.tokens or piece.is_last) and not ticket.cancelled:
                news.append((ticket, piece))
        self._counters.generated(len(tokens), time.monotonic())
        if news:
            self._post(partial(_hand_out, news))

    def _end_all(self) -> None:
        with self._changed:
            self._closed = self.fault or self._closed
            tickets = [*self._rows.values(), *self._waiting]
            self._rows.clear()
            self._waiting.clear()
        error = Piece(error=self._closed)
        self._post(partial(_hand_out, [(ticket, error) for ticket in tickets]))


def _hand_out(news: Sequence[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in news:
        if not ticket.cancelled:
            ticket.receive(piece)
