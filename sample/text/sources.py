"""A text -> which parts of it stand word for word in the training text, and in which documents.

    text -> ids, as the training text was encoded -> spans of them -> spans of characters

So it does not matter by which ids a network wrote it, and any text can be asked about.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path

from common.tokenizer import Tokenizer
from common.tracing import Passage, Tracer, open_tracer

NO_INDEX = (
    "The training text has no index, so where an answer stands in it cannot be found. "
    "Make one: python -m prepare index DATA"
)
NOT_ALL = "A part of the training text has no index, so it was not looked through."


@dataclass(frozen=True)
class SourceSpan:
    """A part of a text, of characters ``start`` to ``end``, that stands in the training text."""

    start: int
    end: int
    n_tokens: int
    n_found: int  # times in the training text
    passages: list[Passage]  # some of them, each of another document


@dataclass(frozen=True)
class Sources:
    """Where a text stands in the training text."""

    n_tokens: int  # of the text
    n_traced: int  # of them, in any span
    spans: list[SourceSpan]  # the longest first; they may overlap

    def pieces(self, text: str) -> list[tuple[str, int | None]]:
        """Return the text in pieces, each with the number of the longest span that it is in."""
        owners: list[int | None] = [None] * len(text)
        for number, span in reversed(list(enumerate(self.spans))):
            owners[span.start : span.end] = [number] * (span.end - span.start)
        grouped = groupby(zip(text, owners, strict=True), key=itemgetter(1))
        return [("".join(c for c, _ in characters), owner) for owner, characters in grouped]


@dataclass(frozen=True)
class TrainingText:
    """What a network learned from, as far as it can be searched."""

    tokenizer: Tokenizer
    tracer: Tracer | None = None  # None where none of it has an index
    notices: Sequence[str] = ()  # on each part that cannot be searched

    @property
    def is_indexed(self) -> bool:
        """Whether anything can be found in it."""
        return self.tracer is not None

    @property
    def notice(self) -> str | None:
        """A sentence, for anybody, on what cannot be searched."""
        return NO_INDEX if self.tracer is None else NOT_ALL if self.notices else None

    def find(self, text: str) -> Sources | None:
        """Return the spans of ``text``, where a part of a character counts as the whole."""
        if self.tracer is None:
            return None
        ids = self.tokenizer.encode(text)
        missing = set(self.tokenizer.missing(text))  # they have no ids
        lengths = [0 if c in missing else len(c.encode()) for c in text]
        characters = list(accumulate(lengths, initial=0))  # the byte at which each begins
        n_bytes = (len(self.tokenizer.token_bytes[idx]) for idx in ids)
        tokens = list(accumulate(n_bytes, initial=0))
        traced, spans = set[int](), []
        for span in self.tracer.trace(ids):
            traced.update(range(span.first, span.last))
            start = bisect_right(characters, tokens[span.first]) - 1
            end = bisect_left(characters, tokens[span.last])
            n_tokens = span.last - span.first
            spans.append(SourceSpan(start, end, n_tokens, span.n_found, span.passages))
        return Sources(len(ids), len(traced), spans)


def open_training_text(checkpoint: Path, tokenizer: Tokenizer) -> TrainingText:
    """Return what the network of a checkpoint learned from, also in the runs that it began from."""
    if checkpoint.is_file():  # export --to weights
        return TrainingText(tokenizer, None, [f"{checkpoint}: does not say what it learned from."])
    notices: list[str] = []
    return TrainingText(tokenizer, open_tracer(checkpoint, notices), notices)
