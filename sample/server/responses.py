"""Text deltas of the engine -> one JSON object, or server-sent events.

The shapes are those of protocol.py, which /openapi.json describes and the tests check; here they
are plain dicts, as one is made for every token.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import Histogram
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.server.errors import APIError, unavailable
from sample.text.detokenizer import TextDelta

log = logging.getLogger(__name__)

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; OpenAI's too
SEND_TIMEOUT_S = 60.0  # a client that does not read for so long is gone
# in ASCII: some clients take U+2028 and U+0085 for the end of a line, thus of an event
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def json_bytes(value: Json) -> bytes:
    """Return JSON in ASCII."""
    return _encode(value).encode("ascii")


@dataclass(frozen=True, kw_only=True)
class ResponseBuilder:
    """What the answers to one request have in common."""

    chat: bool
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    n_prompt_tokens: int
    top_logprobs: int | None  # likeliest tokens to name beside each; None: no logprobs at all
    notices: Sequence[str]  # what had no room in the context
    prefixes: Sequence[str]  # of each answer: its prompt, if it is to be echoed
    include_usage: bool  # in a stream
    created: int = field(default_factory=lambda: int(time.time()))
    request_id: str = field(default_factory=lambda: secrets.token_hex(12))

    def envelope(self, choices: list[Json], *, chunk: bool) -> Json:
        """Return what goes around whole ``choices``, or around those of a ``chunk``."""
        kind = "chat.completion" + ".chunk" * chunk if self.chat else "text_completion"
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def choice(self, index: int, delta: TextDelta, *, chunk: bool, first: bool = True) -> Json:
        """Return an answer, or a ``chunk`` of it, which may be the ``first``."""
        content: Json = {"text": delta.text}
        if self.chat and chunk:
            role = {"role": "assistant"} if first else {}
            content = {"delta": role | ({"content": delta.text} if delta.text or first else {})}
        elif self.chat:
            content = {"message": {"role": "assistant", "content": delta.text, "refusal": None}}
        logprobs = None
        if self.top_logprobs is not None and (delta.tokens or delta.finish_reason):
            logprobs = self._chat_logprobs(delta) if self.chat else self._text_logprobs(delta)
        rest = {"logprobs": logprobs, "finish_reason": delta.finish_reason}
        return {"index": index, **content, **rest}

    def _chat_logprobs(self, delta: TextDelta) -> Json:
        def entry(idx: int, logprob: float) -> Json:
            token_bytes = self.tokenizer.token_bytes[idx]
            text = token_bytes.decode("utf-8", "replace") or self._special(idx)
            bounded = max(logprob, LEAST_LOGPROB)
            return {"token": text, "bytes": list(token_bytes), "logprob": bounded}

        content = [
            entry(token.idx, token.logprob)
            | {"top_logprobs": [entry(*top) for top in self._likeliest(token)]}
            for token in delta.tokens
        ]
        return {"content": content, "refusal": None}

    def _text_logprobs(self, delta: TextDelta) -> Json:
        entries = [
            [
                (self._token_text(idx), max(logprob, LEAST_LOGPROB))
                # the one that was chosen is always there: these may be one more than asked for
                for idx, logprob in [*self._likeliest(token), (token.idx, token.logprob)]
            ]
            for token in delta.tokens
        ]
        return {
            "tokens": [each[-1][0] for each in entries],
            "token_logprobs": [each[-1][1] for each in entries],
            "top_logprobs": [dict(each) for each in entries] if self.top_logprobs else None,
            "text_offset": list(delta.text_offsets),
        }

    def _likeliest(self, token: Token) -> list[tuple[int, float]]:
        """Return the likeliest ids, without those that only pad the network's vocabulary."""
        top = token.top_logprobs[: self.top_logprobs]
        return [(idx, logprob) for idx, logprob in top if idx < self.tokenizer.vocab_size]

    def _token_text(self, idx: int) -> str:
        """Return a token's text; of a part of a character the bytes, as OpenAI has them."""
        token_bytes = self.tokenizer.token_bytes[idx]
        try:
            return token_bytes.decode("utf-8") or self._special(idx)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)

    def _special(self, idx: int) -> str:
        names = self.tokenizer.special_tokens.items()
        return next((name for name, own in names if own == idx), "")


class ResponseStream:
    """The deltas of one request's answers, as the engine delivers them."""

    def __init__(self, builder: ResponseBuilder, arrived_s: float, ttft: Histogram) -> None:
        """``ttft`` observes how long after ``arrived_s`` the first delta comes."""
        self._builder, self._arrived_s, self._ttft = builder, arrived_s, ttft
        self._deltas: asyncio.Queue[tuple[int, TextDelta]] = asyncio.Queue()
        self._n_generated = [0] * len(builder.prefixes)

    def push(self, index: int, delta: TextDelta) -> None:
        """Add the next delta of an answer."""
        self._deltas.put_nowait((index, delta))

    async def deltas(self) -> AsyncIterator[tuple[int, TextDelta, bool]]:
        """Yield (answer, text, whether it is the first), with what is echoed.

        Raises: APIError, 503, where the engine ends before the answers do.
        """
        n_open = len(self._n_generated)
        while n_open:
            index, delta = await self._deltas.get()
            if delta.error is not None:
                raise unavailable(delta.error)
            if n_open == len(self._n_generated) and not any(self._n_generated):
                self._ttft.observe(time.monotonic() - self._arrived_s)
            first = self._n_generated[index] == 0
            self._n_generated[index] = delta.n_tokens
            n_open -= delta.is_last
            if first:
                delta = replace(delta, text=self._builder.prefixes[index] + delta.text)
            yield index, delta, first

    async def response(self) -> Json:
        """Return all answers as one JSON object."""
        builder = self._builder
        parts: list[list[TextDelta]] = [[] for _ in builder.prefixes]
        async for index, delta, _ in self.deltas():
            parts[index].append(delta)
        choices = [builder.choice(i, _merge(each), chunk=False) for i, each in enumerate(parts)]
        body = builder.envelope(choices, chunk=False) | self._usage()
        return body | ({"notices": builder.notices} if builder.notices else {})

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answers as server-sent events; where the engine ends before, an error."""
        builder = self._builder
        rest: Json = {"usage": None} if builder.include_usage else {}
        notices: Json = {"notices": builder.notices} if builder.notices else {}
        try:
            async for index, delta, first in self.deltas():
                choice = builder.choice(index, delta, chunk=True, first=first)
                yield _event(builder.envelope([choice], chunk=True) | rest | notices)
                notices = {}  # with the first event only
            if builder.include_usage:
                yield _event(builder.envelope([], chunk=True) | self._usage())
        except APIError as error:  # the status was sent long ago
            yield _event(error.body)
        yield b"data: [DONE]\n\n"

    def _usage(self) -> Json:
        n_prompt, n_generated = self._builder.n_prompt_tokens, sum(self._n_generated)
        total = n_prompt + n_generated
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": total}
        return {"usage": usage}


def _merge(parts: Sequence[TextDelta]) -> TextDelta:
    return replace(
        parts[-1],
        text="".join(part.text for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
        text_offsets=tuple(offset for part in parts for offset in part.text_offsets),
    )


def _event(value: Json) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; ``close`` is called however they end."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        # the header: nginx would hold the events back until it has a page of them
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until the client is gone or does not read any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("A client read nothing of its answer for %.0f s.", SEND_TIMEOUT_S)
        finally:
            self._close()
