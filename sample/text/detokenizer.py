"""One row's tokens -> pieces of its answer: text that may be shown, and why it ended.

What may yet turn out to be the beginning of a stop text, or of a character, is held back; the
tokens that make up a text travel with it.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.text.stop_strings import StopFilter

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer: its text, the tokens it is made of, how many there were so far."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    starts: tuple[int, ...] = ()  # the character of the answer at which each token begins
    n_tokens: int = 0
    finish: Finish | None = None  # set in the last piece, unless there is an error
    error: str | None = None  # a sentence; nothing follows it

    @property
    def is_last(self) -> bool:
        """Whether the answer ends here."""
        return self.finish is not None or self.error is not None


class Reading:
    """What one row has said so far."""

    def __init__(self, tokenizer: Tokenizer, max_new_tokens: int, stops: Sequence[str]) -> None:
        self.n_tokens = 0
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopFilter(stops)
        self._waiting: list[tuple[int, Token]] = []  # with the character at which each begins
        self._n_decoded = 0  # characters
        self._n_shown = 0

    def take(self, token: Token) -> Piece:
        """Return what the row's next token adds; end-of-text is not counted among the tokens."""
        if token.idx == self._tokenizer.eot_id:
            return self._end("stop")
        self.n_tokens += 1
        self._waiting.append((self._n_decoded, token))
        shown = self._show(self._decoder.decode(self._tokenizer.token_bytes[token.idx]))
        if self._stops.stopped:
            return self._piece(shown, "stop")
        if self.n_tokens >= self._max_new_tokens:
            return self._end("length", shown)
        return self._piece(shown, None)

    def _show(self, text: str) -> str:
        self._n_decoded += len(text)
        return self._stops.push(text)

    def _end(self, finish: Finish, shown: str = "") -> Piece:
        shown += self._show(self._decoder.decode(b"", final=True))
        if self._stops.stopped:
            return self._piece(shown, "stop")
        # with those that add no text of their own, such as a last one that begins a character
        return self._piece(shown + self._stops.end(), finish, whole=True)

    def _piece(self, shown: str, finish: Finish | None, *, whole: bool = False) -> Piece:
        self._n_shown += len(shown)
        n_ready = sum(whole or start < self._n_shown for start, _ in self._waiting)
        ready = self._waiting[:n_ready]
        del self._waiting[:n_ready]
        return Piece(
            text=shown,
            tokens=tuple(token for _, token in ready),
            starts=tuple(start for start, _ in ready),
            n_tokens=self.n_tokens,
            finish=finish,
        )
