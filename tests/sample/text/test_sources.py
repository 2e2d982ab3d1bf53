"""Spans of ids become spans of characters, whatever the vocabulary."""

import random
from typing import Any

import pytest

from common.tokenizer import Tokenizer
from common.tracing import Passage, Span
from sample.text.sources import Sources, SourceSpan, TrainingText
from tests.sample.conftest import ALPHABET
from tests.sample.fake_tracer import FakeTracer
from tests.tiny import byte_tokenizer

READ = "the quern turns \u00fcber grain, \U0001f33e and more"


def find_sources(text: str, tokenizer: Tokenizer, tracer: Any) -> Sources:
    found = TrainingText(tokenizer, tracer).find(text)
    assert found is not None
    return found


class Fixed:
    """A tracer that says what it is told to."""

    def __init__(self, *spans: tuple[int, int]) -> None:
        self.spans = [Span(first, last, 1, []) for first, last in spans]

    def trace(self, ids: object) -> list[Span]:
        return self.spans


def test_a_span_is_in_characters_and_says_where_it_was_read() -> None:
    tracer = FakeTracer.make(byte_tokenizer(), ("a.txt", 3, READ), ("b.txt", None, "x" + READ))
    sources = find_sources("So \u00fcber grain, \U0001f33e and less", byte_tokenizer(), tracer)
    assert (sources.n_tokens, sources.n_traced) == (29, 23)
    (span,) = sources.spans
    assert "So \u00fcber grain, \U0001f33e and less"[span.start : span.end] == (
        " \u00fcber grain, \U0001f33e and "
    )
    assert (span.n_tokens, span.n_found) == (23, 2)
    assert span.passages[0] == Passage(
        "a.txt", 3, "the quern turns", " \u00fcber grain, \U0001f33e and ", "more"
    )
    assert [passage.name for passage in span.passages] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("first", "last", "covered"),
    [(0, 1, "a"), (1, 3, "\u00fc"), (2, 3, "\u00fc"), (0, 2, "a\u00fc"), (3, 4, "b"),
     (5, 6, "\U0001f33e"), (4, 8, "\U0001f33e"), (8, 9, "c")],
)  # fmt: skip
def test_a_part_of_a_character_counts_as_the_whole(first: int, last: int, covered: str) -> None:
    text = "a\u00fcb\U0001f33ec"  # bytes: 0, 1-2, 3, 4-7, 8
    (span,) = find_sources(text, byte_tokenizer(), Fixed((first, last))).spans
    assert text[span.start : span.end] == covered


def test_characters_that_have_no_id_move_nothing() -> None:
    tracer = FakeTracer.make(ALPHABET, ("a.txt", None, "abcdefgh"))
    (span,) = find_sources("??abc?defghX", ALPHABET, tracer).spans
    assert (span.start, span.end) == (2, 11)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), ALPHABET], ids=["bytes", "characters"])
def test_every_span_is_the_text_of_its_passages(tokenizer: Tokenizer) -> None:
    drawn = random.Random(0)
    tracer = FakeTracer.make(
        tokenizer, *((str(i), i, "".join(drawn.choices("ab ", k=60))) for i in range(5))
    )
    n_spans = 0
    for _ in range(20):
        text = "".join(drawn.choices("ab ", k=40))
        sources = find_sources(text, tokenizer, tracer)
        covered = set[int]()
        for span in sources.spans:
            covered |= set(range(span.start, span.end))
            assert {passage.text for passage in span.passages} == {text[span.start : span.end]}
        assert sources.n_traced == len(covered)  # an id a character
        n_spans += len(sources.spans)
        pieces = sources.pieces(text)
        assert "".join(piece for piece, _ in pieces) == text
        assert sum(len(piece) for piece, owner in pieces if owner is not None) == len(covered)
    assert n_spans > 10


def test_a_character_is_of_the_longest_span_that_it_is_in() -> None:
    def span(start: int, end: int) -> SourceSpan:
        return SourceSpan(start, end, end - start, 1, [])

    sources = Sources(9, 8, [span(2, 6), span(0, 3), span(5, 8), span(4, 6)])
    assert sources.pieces("abcdefghi") == [("ab", 1), ("cdef", 0), ("gh", 2), ("i", None)]
    assert Sources(0, 0, []).pieces("") == []
