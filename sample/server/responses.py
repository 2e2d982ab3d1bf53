"""Text deltas of the engine -> one JSON object, or server-sent events, in protocol.py's shapes.

They are plain dicts, as one is made for every token; the tests check them.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.server.protocol import APIError, Json
from sample.text.detokenizer import TextDelta

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; OpenAI's too
SEND_TIMEOUT_S = 60.0  # a client that does not read for so long is gone


def json_bytes(value: Json) -> bytes:
    """Return JSON in ASCII: some clients take U+2028 and U+0085 for the end of a line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


@dataclass(kw_only=True)
class ResponseStream:
    """The answers to one HTTP request, written down as the engine delivers their deltas."""

    chat: bool
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    n_prompt_tokens: int
    top_logprobs: int | None  # likeliest tokens to name beside each; None: no logprobs at all
    notices: Sequence[str]  # what had no room in the context
    prefixes: Sequence[str]  # of each answer: its prompt, if it is to be echoed
    include_usage: bool  # in a stream
    # where the text of an answer stands in the training text; None: nobody asked
    trace: Callable[[str], Json | None] | None = None

    def __post_init__(self) -> None:
        self._deltas: asyncio.Queue[tuple[int, TextDelta]] = asyncio.Queue()
        self._n_generated = [0] * len(self.prefixes)
        self._texts = [""] * len(self.prefixes)
        self._envelope = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12),
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def push(self, index: int, delta: TextDelta) -> None:
        """Add the next delta of an answer."""
        self._deltas.put_nowait((index, delta))

    async def deltas(
        self, on_first: Callable[[], None]
    ) -> AsyncIterator[tuple[int, TextDelta, bool]]:
        """Yield (answer, delta, whether its first); raise APIError where the engine ends before."""
        begun, n_open = set[int](), len(self.prefixes)
        while n_open:
            index, delta = await self._deltas.get()
            if delta.error is not None:
                raise APIError(delta.error, status=503, code="unavailable")
            if not begun:
                on_first()
            self._n_generated[index] = delta.n_tokens
            n_open -= delta.is_last
            if is_first := index not in begun:
                begun.add(index)
                delta = replace(delta, text=self.prefixes[index] + delta.text)
            self._texts[index] += delta.text
            yield index, delta, is_first

    async def whole(self, on_first: Callable[[], None]) -> Json:
        """Return all answers as one JSON object."""
        parts: list[list[TextDelta]] = [[] for _ in self.prefixes]
        async for index, delta, _ in self.deltas(on_first):
            parts[index].append(delta)
        choices = []
        for index, deltas in enumerate(parts):
            delta = replace(
                deltas[-1],
                text="".join(each.text for each in deltas),
                tokens=tuple(token for each in deltas for token in each.tokens),
                text_offsets=tuple(offset for each in deltas for offset in each.text_offsets),
            )
            message = {"role": "assistant", "content": delta.text, "refusal": None}
            content = {"message": message} if self.chat else {"text": delta.text}
            choices.append(await self._choice(index, delta, content))
        notices = {"notices": self.notices} if self.notices else {}
        return {**self._envelope, "choices": choices, **self._usage(), **notices}

    async def events(self, on_first: Callable[[], None]) -> AsyncIterator[bytes]:
        """Yield the answers as server-sent events; where the engine ends before, an error."""
        if self.chat:
            self._envelope["object"] = "chat.completion.chunk"
        rest: Json = {"usage": None} if self.include_usage else {}
        notices = {"notices": self.notices} if self.notices else {}
        try:
            async for index, delta, is_first in self.deltas(on_first):
                content: Json = {"text": delta.text}
                if self.chat:
                    role = {"role": "assistant"} if is_first else {}
                    text = {"content": delta.text} if delta.text or is_first else {}
                    content = {"delta": role | text}
                choices = [await self._choice(index, delta, content)]
                yield _event({**self._envelope, "choices": choices, **rest, **notices})
                notices = {}  # with the first event only
            if self.include_usage:
                yield _event({**self._envelope, "choices": [], **self._usage()})
        except APIError as error:  # the status was sent long ago
            yield _event(error.body)
        yield b"data: [DONE]\n\n"

    def _usage(self) -> Json:
        n_in, n_out = self.n_prompt_tokens, sum(self._n_generated)
        usage = {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}
        return {"usage": usage}

    async def _choice(self, index: int, delta: TextDelta, content: Json) -> Json:
        logprobs = None
        if self.top_logprobs is not None and (delta.tokens or delta.finish_reason):
            logprobs = self._chat_logprobs(delta) if self.chat else self._text_logprobs(delta)
        finish = {"logprobs": logprobs, "finish_reason": delta.finish_reason}
        sources = {}
        if self.trace is not None and delta.is_last:  # in a thread: it reads the index
            sources["sources"] = await asyncio.to_thread(self.trace, self._texts[index])
        return {"index": index, **content, **finish, **sources}

    def _chat_logprobs(self, delta: TextDelta) -> Json:
        def entry(idx: int, logprob: float) -> Json:
            text = self._token_bytes(idx).decode("utf-8", "replace")
            own = list(self.tokenizer.token_bytes[idx])
            return {"token": text, "bytes": own, "logprob": max(logprob, LEAST_LOGPROB)}

        content = [
            entry(token.idx, token.logprob)
            | {"top_logprobs": [entry(*top) for top in self._likeliest(token)]}
            for token in delta.tokens
        ]
        return {"content": content, "refusal": None}

    def _text_logprobs(self, delta: TextDelta) -> Json:
        def entry(idx: int, logprob: float) -> tuple[str, float]:
            try:
                text = self._token_bytes(idx).decode("utf-8")
            except UnicodeDecodeError:  # part of a character, as OpenAI has it
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._token_bytes(idx))
            return text, max(logprob, LEAST_LOGPROB)

        entries = [
            # the one that was chosen is always there: these may be one more than asked for
            [entry(*top) for top in (*self._likeliest(token), (token.idx, token.logprob))]
            for token in delta.tokens
        ]
        logprobs: list[float | None] = [each[-1][1] for each in entries]
        tops: list[Json | None] = [dict(each) for each in entries]
        if delta.tokens and math.isnan(delta.tokens[0].logprob):  # a prompt's: nothing predicts it
            logprobs[0] = tops[0] = None
        return {
            "tokens": [each[-1][0] for each in entries],
            "token_logprobs": logprobs,
            "top_logprobs": tops if self.top_logprobs else None,
            "text_offset": list(delta.text_offsets),
        }

    def _likeliest(self, token: Token) -> list[tuple[int, float]]:
        """Return the likeliest ids, without those that only pad the network's vocabulary."""
        top = token.top_logprobs[: self.top_logprobs]
        return [(idx, logprob) for idx, logprob in top if idx < self.tokenizer.vocab_size]

    def _token_bytes(self, idx: int) -> bytes:
        """Return the bytes of a token, or the name of a special one, which has none."""
        if own := self.tokenizer.token_bytes[idx]:
            return own
        names = {special: name for name, special in self.tokenizer.special_tokens.items()}
        return names.get(idx, "").encode()


def _event(value: Json) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; ``close`` is called however they end."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        # the header: nginx would hold the events back until it has a page of them
        super().__init__(events, 200, {"X-Accel-Buffering": "no"}, "text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until the client is gone or does not read any more."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            with suppress(TimeoutError):
                await super().__call__(scope, receive, send_in_time)
        finally:
            self._close()
