"""The way back: text deltas of the engine -> one JSON object, or server-sent events.

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
SEND_WITHIN_S = 60.0  # a client that takes longer to take a piece of its answer is gone
# in ASCII: some clients take U+2028 and U+0085 for the end of a line, thus of an event
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def json_bytes(value: Json) -> bytes:
    """Return JSON in ASCII."""
    return _encode(value).encode("ascii")


@dataclass(frozen=True, kw_only=True)
class ResponseBuilder:
    """Write the answers to one request; it has as many as ``prefixes``."""

    chat: bool
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    n_prompt_tokens: int
    prefixes: Sequence[str]  # of each answer: the prompt, if it is to be echoed
    top_logprobs: int | None  # likeliest tokens to name beside each; None: no logprobs at all
    include_usage: bool  # in a stream
    notices: Sequence[str] = ()  # what had no room in the context
    created: int = field(default_factory=lambda: int(time.time()))
    code: str = field(default_factory=lambda: secrets.token_hex(12))

    def envelope(self, choices: list[Json], *, chunk: bool) -> Json:
        """Return what goes around ``choices``."""
        kind = "chat.completion" + ".chunk" * chunk if self.chat else "text_completion"
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.code,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def choice(self, index: int, delta: TextDelta) -> Json:
        """Return a whole answer."""
        if not self.chat:
            return self._choice(index, {"text": delta.text}, delta)
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return self._choice(index, {"message": message}, delta)

    def chunk(self, index: int, delta: TextDelta, *, first: bool) -> Json:
        """Return a part of an answer, ``first`` or not, as a stream has it."""
        if not self.chat:
            return self._choice(index, {"text": delta.text}, delta)
        part = {"role": "assistant"} if first else {}
        if delta.text or first:
            part["content"] = delta.text
        return self._choice(index, {"delta": part}, delta)

    def _choice(self, index: int, text: Json, delta: TextDelta) -> Json:
        logprobs = None
        if self.top_logprobs is not None and (delta.tokens or delta.finish_reason):
            write = chat_logprobs if self.chat else text_logprobs
            logprobs = write(delta, self.top_logprobs, self.tokenizer)
        return {"index": index, **text, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def usage(self, n_generated: int) -> Json:
        """Return how many tokens there were."""
        return {
            "prompt_tokens": self.n_prompt_tokens,
            "completion_tokens": n_generated,
            "total_tokens": self.n_prompt_tokens + n_generated,
        }


def chat_logprobs(delta: TextDelta, top_logprobs: int, tokenizer: Tokenizer) -> Json:
    """Return tokens and their natural logarithms of probability as chat answers have them."""

    def entry(idx: int, logprob: float) -> Json:
        token_bytes = tokenizer.token_bytes[idx]
        text = token_bytes.decode("utf-8", "replace") or _special(idx, tokenizer)
        return {"token": text, "bytes": list(token_bytes), "logprob": max(logprob, LEAST_LOGPROB)}

    content = [
        entry(token.idx, token.logprob)
        | {"top_logprobs": [entry(*top) for top in likeliest(token, top_logprobs, tokenizer)]}
        for token in delta.tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(delta: TextDelta, top_logprobs: int, tokenizer: Tokenizer) -> Json:
    """Return the same as plain completions have them.

    The token that was chosen is always among the likeliest, so that these may be one more.
    """
    tops = [
        {
            token_text(idx, tokenizer): max(logprob, LEAST_LOGPROB)
            for idx, logprob in [
                *likeliest(token, top_logprobs, tokenizer), (token.idx, token.logprob),
            ]
        }
        for token in delta.tokens
    ]  # fmt: skip
    return {
        "tokens": [token_text(token.idx, tokenizer) for token in delta.tokens],
        "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in delta.tokens],
        "top_logprobs": tops if top_logprobs else None,
        "text_offset": list(delta.text_offsets),
    }


def likeliest(token: Token, n: int, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """Return the ``n`` likeliest ids, without those that only pad the network's vocabulary."""
    return [top for top in token.top_logprobs[:n] if top[0] < tokenizer.vocab_size]


def token_text(idx: int, tokenizer: Tokenizer) -> str:
    """Return a token's text or, where it is a part of a character, its bytes as OpenAI has them."""
    token_bytes = tokenizer.token_bytes[idx]
    try:
        return token_bytes.decode("utf-8") or _special(idx, tokenizer)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def _special(idx: int, tokenizer: Tokenizer) -> str:
    return next((name for name, own in tokenizer.special_tokens.items() if own == idx), "")


class ResponseStream:
    """What the engine says of one request's answers, as it comes."""

    def __init__(self, builder: ResponseBuilder, arrived_s: float, first_token: Histogram) -> None:
        """``first_token`` notes how long after ``arrived_s`` the first text comes."""
        self._builder, self._arrived_s, self._first_token = builder, arrived_s, first_token
        self._deltas: asyncio.Queue[tuple[int, TextDelta]] = asyncio.Queue()
        self._n_generated = [0] * len(builder.prefixes)

    def push(self, index: int, delta: TextDelta) -> None:
        """Take the next text of an answer."""
        self._deltas.put_nowait((index, delta))

    async def deltas(self) -> AsyncIterator[tuple[int, TextDelta, bool]]:
        """Yield (answer, text, whether it is the first), with what is echoed.

        Raises: APIError, 503, where the engine ends before the answers do.
        """
        begun: set[int] = set()
        n_open = len(self._builder.prefixes)
        while n_open:
            index, delta = await self._deltas.get()
            if delta.error is not None:
                raise unavailable(delta.error)
            if not begun:
                self._first_token.observe(time.monotonic() - self._arrived_s)
            self._n_generated[index] = delta.n_tokens
            n_open -= delta.is_last
            first = index not in begun
            begun.add(index)
            prefix = self._builder.prefixes[index] if first else ""
            yield index, replace(delta, text=prefix + delta.text), first

    async def whole(self) -> bytes:
        """Return all answers as one JSON object."""
        builder = self._builder
        parts: list[list[TextDelta]] = [[] for _ in builder.prefixes]
        async for index, delta, _ in self.deltas():
            parts[index].append(delta)
        choices = [builder.choice(index, _joined(each)) for index, each in enumerate(parts)]
        body = builder.envelope(choices, chunk=False)
        body["usage"] = builder.usage(sum(self._n_generated))
        if builder.notices:
            body["notices"] = list(builder.notices)
        return json_bytes(body)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answers as server-sent events; where the engine ends before, an error."""
        builder = self._builder
        rest: Json = {"usage": None} if builder.include_usage else {}
        notices = {"notices": list(builder.notices)} if builder.notices else {}
        try:
            async for index, delta, first in self.deltas():
                chunk = builder.envelope([builder.chunk(index, delta, first=first)], chunk=True)
                yield _event(chunk | rest | notices)
                notices = {}  # with the first event only
            if builder.include_usage:
                usage = {"usage": builder.usage(sum(self._n_generated))}
                yield _event(builder.envelope([], chunk=True) | usage)
        except APIError as error:  # the status was sent long ago
            yield _event(error.body)
        yield b"data: [DONE]\n\n"


def _joined(parts: Sequence[TextDelta]) -> TextDelta:
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
        """Send the events, until the client is gone or takes nothing any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_WITHIN_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("A client took nothing of its answer for %.0f s.", SEND_WITHIN_S)
        finally:
            self._close()
