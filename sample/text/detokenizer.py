"""One row's tokens -> text that may be shown, cut at stop texts.

    token -> bytes -> characters -> stops of the template -> strip -> stops of the client -> strip

What may yet turn out to be the beginning of a stop text, of a character, or blanks at the end, is
held back; the tokens that make up a text travel with it.
"""

import codecs
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from common.inference.decoder import Token
from common.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextDelta:
    """A part of an answer: its text, the tokens it is made of, how many there were so far."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    text_offsets: tuple[int, ...] = ()  # the character of the answer at which each token begins
    n_tokens: int = 0
    finish_reason: FinishReason | None = None  # set in the last one, unless there is an error
    error: str | None = None  # a sentence; nothing follows it

    @property
    def is_last(self) -> bool:
        """Whether the answer ends here."""
        return self.finish_reason is not None or self.error is not None


class StopFilter:
    """What of a text may be shown so far, wherever tokens begin; ``stopped`` at a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)  # none of them empty
        self._held = ""

    def push(self, text: str, *, is_last: bool = False) -> str:
        """Add the next part of the text; return what may be shown now."""
        if not self._stops:
            return text
        text = self._held + text
        found = [(i + len(stop), i) for stop in self._stops if (i := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]  # before the one that ends first, however text is cut
        if is_last:
            return text
        n_shown = 0  # held back is the longest end that may be the beginning of a stop text
        while not any(stop.startswith(text[n_shown:]) for stop in self._stops):
            n_shown += 1
        self._held = text[n_shown:]
        return text[:n_shown]


class Detokenizer:
    """The text of one row so far.

    ``stops`` end it where they come in what is shown, ``template_stops`` in what the network wrote.
    Blanks that are stripped are not shown, nor are the tokens of nothing else. The answer begins
    with ``n_echoed`` characters of its prompt. An id without text ends it: end-of-text, or that of
    a message, which is shown if ``names_end``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        stops: Sequence[str] = (),
        *,
        template_stops: Sequence[str] = (),
        strip_start: bool = False,
        strip_end: bool = False,
        n_echoed: int = 0,
        names_end: bool = False,
    ) -> None:
        self.n_tokens = 0  # what ends it is not counted among them
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._filters = StopFilter(template_stops), StopFilter(stops)
        self._strip_start, self._strip_end = strip_start, strip_end
        self._blanks = ""  # held back: they may be the last
        # and its characters: from where to where; a part of one counts as the whole
        self._pending: deque[tuple[Token, int, int]] = deque()
        self._n_decoded = self._n_stripped = self._n_shown = 0  # characters
        self._n_echoed, self._names_end = n_echoed, names_end

    def echo(self, prompt: Sequence[int], scored: Sequence[Token]) -> TextDelta:
        """Return the tokens of ``prompt``: its first, whose logprob is nan, and those ``scored``.

        Their text is not in it.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self._tokenizer.token_bytes[idx]) for idx in prompt]
        offsets = accumulate(map(len, texts[:-1]), initial=0) if texts else ()
        first = [Token(idx, math.nan) for idx in prompt[:1]]
        return TextDelta(tokens=(*first, *scored), text_offsets=tuple(offsets))

    def push(self, token: Token) -> TextDelta:
        """Return what the row's next token adds."""
        own = self._tokenizer.token_bytes[token.idx]
        is_end = not own
        self.n_tokens += not is_end
        is_last = is_end or self.n_tokens >= self._max_new_tokens
        text = self._decoder.decode(own, final=is_last)
        if not is_end:
            end = self._n_decoded + max(1, len(text))
            self._pending.append((token, self._n_decoded, end))
        self._n_decoded += len(text)
        shown = self._filter(text, is_last=is_last)
        self._n_shown += len(shown)
        tokens, offsets = [], []
        while self._pending:
            ready, start, end = self._pending[0]
            offset = max(0, start - self._n_stripped)
            if offset >= self._n_shown:
                break
            self._pending.popleft()
            if end > self._n_stripped:
                tokens.append(ready)
                offsets.append(self._n_echoed + offset)
        if is_end and self._names_end:
            tokens.append(token)
            offsets.append(self._n_echoed + self._n_shown)
        finish_reason: FinishReason | None = "length" if is_last else None
        if is_end or any(each.stopped for each in self._filters):
            finish_reason = "stop"
        return TextDelta(shown, tuple(tokens), tuple(offsets), self.n_tokens, finish_reason)

    def _filter(self, text: str, *, is_last: bool) -> str:
        of_template, of_client = self._filters
        text = of_template.push(text, is_last=is_last)
        if self._strip_start:
            stripped = text.lstrip()
            self._n_stripped += len(text) - len(stripped)
            self._strip_start, text = not stripped, stripped
        text = of_client.push(text, is_last=is_last or of_template.stopped)
        if self._strip_end:
            text = self._blanks + text
            shown = text.rstrip()
            self._blanks, text = text[len(shown) :], shown
        return text


def token_json(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a token as JSON; its text may be part of a character, logprobs are before filters."""
    text = tokenizer.decode_bytes([token.idx]).decode("utf-8", "replace")
    described = {"id": token.idx, "text": text, "logprob": token.logprob}
    if token.top_logprobs:
        described["top"] = [token_json(Token(*top), tokenizer) for top in token.top_logprobs]
    return described
