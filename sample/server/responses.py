"""The shapes of answers that OpenAI's clients know.

Source: platform.openai.com/docs/api-reference, "Completions" and "Chat", of 2025.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.inference.decoder import Token
from common.tokenizer import Tokenizer

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; OpenAI's too


@dataclass(frozen=True)
class Usage:
    """Tokens in and out; end-of-text is not counted."""

    n_prompt: int
    n_generated: int

    @property
    def json(self) -> Json:
        """As OpenAI names them."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_generated,
            "total_tokens": self.n_prompt + self.n_generated,
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer, or a part of one."""

    index: int
    text: str
    tokens: Sequence[Token]
    finish: str | None
    first: bool = True  # nothing of it came before
    starts: Sequence[int] = ()  # the character of the text at which each token begins


@dataclass(frozen=True)
class Shape:
    """What the answers to one request have in common."""

    chat: bool
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    logprobs: bool
    n_top: int
    created: int = field(default_factory=lambda: int(time.time()))
    code: str = field(default_factory=lambda: secrets.token_hex(12))

    def answer(self, choices: Sequence[Choice], usage: Usage, notices: Sequence[str]) -> Json:
        """Return a whole answer; what had no room in the context is said in ``notices``."""
        kind = "chat.completion" if self.chat else "text_completion"
        whole = self._around(kind, [self._whole(choice) for choice in choices])
        return whole | {"usage": usage.json} | ({"notices": list(notices)} if notices else {})

    def event(self, choice: Choice) -> Json:
        """Return a part of an answer."""
        return self._around(self._event_kind, [self._part(choice)])

    def usage_event(self, usage: Usage) -> Json:
        """Return the event after the last part, which counts."""
        return self._around(self._event_kind, []) | {"usage": usage.json}

    @property
    def _event_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _around(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.code,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _whole(self, choice: Choice) -> Json:
        if not self.chat:
            return self._part(choice)
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._with_rest({"index": choice.index, "message": message}, choice)

    def _part(self, choice: Choice) -> Json:
        if not self.chat:
            return self._with_rest({"index": choice.index, "text": choice.text}, choice)
        delta = {"role": "assistant"} if choice.first else {}
        if choice.text or choice.first:
            delta["content"] = choice.text
        return self._with_rest({"index": choice.index, "delta": delta}, choice)

    def _with_rest(self, begun: Json, choice: Choice) -> Json:
        logprobs = None
        if self.logprobs and (choice.tokens or choice.finish):
            logprobs = (
                chat_logprobs(choice.tokens, self.n_top, self.tokenizer)
                if self.chat
                else text_logprobs(choice.tokens, choice.starts, self.n_top, self.tokenizer)
            )
        return begun | {"logprobs": logprobs, "finish_reason": choice.finish}


def chat_logprobs(tokens: Sequence[Token], n_top: int, tokenizer: Tokenizer) -> Json:
    """Return tokens and their natural logarithms of probability as chat answers have them."""

    def entry(idx: int, logprob: float) -> Json:
        token_bytes = tokenizer.token_bytes[idx]
        text = token_bytes.decode("utf-8", "replace") or _special(idx, tokenizer)
        return {"token": text, "bytes": list(token_bytes), "logprob": _json_number(logprob)}

    content = [
        entry(token.idx, token.logprob)
        | {"top_logprobs": [entry(*top) for top in likeliest(token, n_top, tokenizer)]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    tokens: Sequence[Token], starts: Sequence[int], n_top: int, tokenizer: Tokenizer
) -> Json:
    """Return the same as plain completions have them; ``starts`` say where each token begins.

    The token that was chosen is always among the likeliest, so that these may be one more.
    """
    tops = [
        {
            token_text(idx, tokenizer): _json_number(logprob)
            for idx, logprob in [*likeliest(token, n_top, tokenizer), (token.idx, token.logprob)]
        }
        for token in tokens
    ]
    return {
        "tokens": [token_text(token.idx, tokenizer) for token in tokens],
        "token_logprobs": [_json_number(token.logprob) for token in tokens],
        "top_logprobs": tops if n_top else None,
        "text_offset": list(starts),
    }


def likeliest(token: Token, n_top: int, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """Return the likeliest ids beside a token, without those that only pad the network's."""
    return [top for top in token.top_logprobs[:n_top] if top[0] < tokenizer.vocab_size]


def token_text(idx: int, tokenizer: Tokenizer) -> str:
    """Return a token's text or, where it is a part of a character, its bytes as OpenAI has them."""
    token_bytes = tokenizer.token_bytes[idx]
    try:
        return token_bytes.decode("utf-8") or _special(idx, tokenizer)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def _special(idx: int, tokenizer: Tokenizer) -> str:
    return next((name for name, own in tokenizer.special_tokens.items() if own == idx), "")


def _json_number(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def json_bytes(value: Json) -> bytes:
    """Return JSON in UTF-8; half a character becomes the escape that JSON has for it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
