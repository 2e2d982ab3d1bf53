"""The answer to one request: pieces as the engine says them -> events, or one JSON object."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from sample.server.engine import BusyError, ClosedError, Engine
from sample.server.errors import RequestError
from sample.server.metrics import Counters
from sample.server.requests import Asked
from sample.server.responses import Choice, Json, Usage
from sample.text.detokenizer import Piece
from sample.text.template import Trimming

RETRY_AFTER_S = 1  # rows get free every few seconds, and asking costs little


class Answer:
    """What comes back for a request that was taken; ``cancel`` gives its places back."""

    def __init__(self, engine: Engine, asked: Asked, counters: Counters, arrived_s: float) -> None:
        """Hand the request to the engine.

        Raises: RequestError, 429 where the queue is full and 503 where no more are taken.
        """
        self._engine, self._asked, self._counters = engine, asked, counters
        self._arrived_s: float | None = arrived_s
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._n_generated = [0] * len(asked.requests)
        try:
            self._tickets = engine.submit(
                [(request, self._receiver(i)) for i, request in enumerate(asked.requests)]
            )
        except BusyError as error:
            raise RequestError(
                "All rows are busy and the queue is full: try again in a moment.",
                status=429, kind="rate_limit_error", code="rate_limit_exceeded",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            ) from error  # fmt: skip
        except ClosedError as error:
            raise _unavailable(str(error)) from error

    def _receiver(self, index: int) -> Callable[[Piece], None]:
        return lambda piece: self._pieces.put_nowait((index, piece))

    def cancel(self) -> None:
        """Free what the request holds: rows, and places in the queue."""
        self._engine.cancel(self._tickets)

    async def choices(self) -> AsyncIterator[Choice]:
        """Yield parts of the choices as they come.

        Raises: RequestError, 503, where the engine ends before they do.
        """
        prefixes = list(self._asked.prefixes)  # each is sent with the first of its choice
        trimmings = [Trimming(trim=self._asked.trim) for _ in prefixes]
        begun: set[int] = set()
        n_open = len(prefixes)
        while n_open:
            index, piece = await self._pieces.get()
            if piece.error is not None:
                raise _unavailable(piece.error)
            if self._arrived_s is not None:
                self._counters.first_token(time.monotonic() - self._arrived_s)
                self._arrived_s = None
            self._n_generated[index] = piece.n_tokens
            n_open -= piece.is_last
            first = index not in begun
            begun.add(index)
            yield Choice(
                index=index,
                first=first,
                text=(prefixes[index] if first else "") + trimmings[index].push(piece.text),
                tokens=piece.tokens,
                starts=piece.starts,
                finish=piece.finish,
            )

    async def whole(self) -> Json:
        """Return the whole answer."""
        parts: list[list[Choice]] = [[] for _ in self._asked.requests]
        async for choice in self.choices():
            parts[choice.index].append(choice)
        return self._asked.shape.answer(
            [_joined(each) for each in parts], self._usage(), self._asked.notices
        )

    async def events(self) -> AsyncIterator[Json]:
        """Yield the events of a stream; where the engine ends before the answer, an error."""
        shape, include_usage = self._asked.shape, self._asked.include_usage
        notices = {"notices": list(self._asked.notices)} if self._asked.notices else {}
        try:
            async for choice in self.choices():
                yield shape.event(choice) | ({"usage": None} if include_usage else {}) | notices
                notices = {}  # with the first event only
        except RequestError as error:  # the status was sent long ago
            yield error.body
            return
        if include_usage:
            yield shape.usage_event(self._usage())

    def _usage(self) -> Usage:
        return Usage(self._asked.n_prompt_tokens, sum(self._n_generated))


def _joined(parts: list[Choice]) -> Choice:
    return Choice(
        index=parts[0].index,
        text="".join(part.text for part in parts),
        tokens=[token for part in parts for token in part.tokens],
        starts=[start for part in parts for start in part.starts],
        finish=parts[-1].finish,
    )


def _unavailable(sentence: str) -> RequestError:
    return RequestError(sentence, status=503, kind="server_error", code="unavailable")
