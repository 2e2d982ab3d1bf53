"""Bytes in and out: bodies that are too large or too slow, streams, and clients that go away."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sample.server.answer import Answer
from sample.server.errors import RequestError
from sample.server.responses import Json, json_bytes

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20  # far more than a context; less than what would hurt to parse
HEAD_WITHIN_S = 30.0  # a client that takes longer to send a request's headers
BODY_WITHIN_S = 30.0  # or its body
SEND_WITHIN_S = 60.0  # or to take a piece of its answer is gone


class Hurried(H11Protocol):
    """uvicorn's connection, which does not wait for a request for ever: connections are limited."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait on where a request is not whole yet."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class EventStream(StreamingResponse):
    """An answer as server-sent events; its places are given back however it ends."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_lines(answer), media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until the client is gone or takes nothing any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_WITHIN_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("A client took nothing of its answer for %.0f s.", SEND_WITHIN_S)
        finally:
            self._answer.cancel()


async def _lines(answer: Answer) -> AsyncIterator[bytes]:
    async for event in answer.events():
        yield b"data: " + json_bytes(event) + b"\n\n"
    yield b"data: [DONE]\n\n"


async def read_body(request: Request) -> bytes:
    """Return a request's body.

    Raises: RequestError where it is too large, too slow, or not announced as JSON.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":  # what other sites' forms cannot send
        raise RequestError(
            "The body must be JSON, and be announced as such: Content-Type: application/json",
            status=415,
        )
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RequestError(
                        f"The body has more than {MAX_BODY_BYTES:,} bytes.",
                        status=413, headers={"Connection": "close"},
                    )  # fmt: skip
    except TimeoutError as error:
        raise RequestError(
            f"The body did not come within {BODY_WITHIN_S:.0f} seconds.",
            status=408, headers={"Connection": "close"},
        ) from error  # fmt: skip
    return bytes(body)


async def unless_gone(receive: Receive, answer: Awaitable[Json]) -> Json | None:
    """Return what is awaited, or None where the client goes away before."""
    gone = asyncio.ensure_future(_disconnected(receive))
    waited = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({gone, waited}, return_when=asyncio.FIRST_COMPLETED)
        return waited.result() if waited.done() else None
    finally:
        gone.cancel()
        waited.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
