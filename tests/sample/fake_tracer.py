"""A tracer without an index: it looks through a few documents from end to end."""

from collections.abc import Sequence
from typing import cast

from common.tokenizer import Tokenizer
from common.tracing import Passage, Span, Tracer

LEAST_TOKENS = 8


class FakeTracer:
    """The methods of Tracer, for documents (name, line, text)."""

    def __init__(
        self, tokenizer: Tokenizer, documents: Sequence[tuple[str, int | None, str]]
    ) -> None:
        self._documents = [(name, line, tokenizer.encode(text)) for name, line, text in documents]
        self._decode = lambda ids: tokenizer.decode_bytes(ids).decode("utf-8", "replace")

    @classmethod
    def make(cls, tokenizer: Tokenizer, *documents: tuple[str, int | None, str]) -> Tracer:
        """Return one that passes for a Tracer."""
        return cast(Tracer, cls(tokenizer, documents))

    def trace(self, ids: Sequence[int]) -> list[Span]:
        """Return the maximal spans that stand in a document, the longest first."""
        ids = list(ids)
        longest = [
            max((n for n in range(len(ids) - i + 1) if self._places(ids[i : i + n])), default=0)
            for i in range(len(ids))
        ]
        spans = []
        for first, n in enumerate(longest):
            is_maximal = first == 0 or first - 1 + longest[first - 1] < first + n
            if n >= LEAST_TOKENS and is_maximal:
                places = self._places(ids[first : first + n])
                passages = [self._passage(*place, n) for place in places[:3]]
                spans.append(Span(first, first + n, len(places), passages))
        return sorted(spans, key=lambda span: span.first - span.last)

    def _places(self, ids: list[int]) -> list[tuple[int, int]]:
        return [
            (number, i)
            for number, (_, _, own) in enumerate(self._documents)
            for i in range(len(own) - len(ids) + 1)
            if own[i : i + len(ids)] == ids
        ]

    def _passage(self, number: int, begin: int, n: int) -> Passage:
        name, line, own = self._documents[number]
        before, text, after = own[:begin], own[begin : begin + n], own[begin + n :]
        return Passage(name, line, *map(self._decode, (before, text, after)))
