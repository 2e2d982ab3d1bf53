"""tokenizer.json against the ids that our own vocabularies give."""

import functools
import json

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings

from common.huggingface.tokenizer_json import merges_of, tokenizer_json
from common.tokenizer import (
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    special_ids_after,
)
from prepare.tokens.vocab_and_split import published_tokenizer
from tests.prepare.test_chunks import HOSTILE, PATTERNS, encodings, hostile_texts
from tests.test_imports import ROOT
from tests.tiny import words

SHARED = ROOT.parent / "shared"
KINDS = ["char", *(f"learned, {name}" for name in PATTERNS), "gpt2"]


@functools.cache
def vocabulary(kind: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Return a vocabulary of ours, and what tokenizers makes of it."""
    ours: Tokenizer
    if kind == "char":
        ours = CharTokenizer(tuple(sorted(set("".join(HOSTILE)))))
    elif kind == "gpt2":
        if not SHARED.is_dir():
            pytest.skip("the published vocabulary is not there: ../shared")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
            ours = published_tokenizer("gpt2")
    else:
        ranks = encodings()[0]._mergeable_ranks
        ours = BytePairTokenizer(
            kind, PATTERNS[kind.removeprefix("learned, ")], ranks, special_ids_after(len(ranks))
        )
    return ours, tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))


def assert_same_ids(kind: str, text: str) -> None:
    ours, theirs = vocabulary(kind)
    theirs.encode_special_tokens = True  # as ordinary text, like ours
    ids = ours.encode(text)
    assert theirs.encode(text).ids == ids
    if not ours.missing(text):
        assert theirs.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=hostile_texts)
@example(text="".join(SPECIAL_TOKENS) + " <|end|>\n<|user|>")
@example(text=words(200))
def test_hostile_texts_have_the_same_ids(kind: str, text: str) -> None:
    assert_same_ids(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_is_seen_alike_by_the_patterns(kind: str) -> None:
    for start in range(0, 0x110000, 0x400):
        characters = [chr(c) for c in range(start, start + 0x400) if not 0xD800 <= c < 0xE000]
        shown = characters[:: 1 if start < 0x3000 else 37]
        assert_same_ids(kind, "".join(f"a {c}{c}b1" for c in shown))


def test_special_tokens_are_where_ours_are() -> None:
    ranks = encodings()[0]._mergeable_ranks
    gap = BytePairTokenizer("x", GPT2_PATTERN, ranks, special_ids_after(len(ranks) + 1))
    of_gap = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(gap)))
    for ours, theirs in (vocabulary("char"), vocabulary("gpt2"), (gap, of_gap)):
        theirs.encode_special_tokens = False
        assert theirs.encode("".join(SPECIAL_TOKENS)).ids == [*ours.special_tokens.values()]


def test_merges_are_by_rank_and_words_that_no_merge_leads_to_have_none() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"bc": 256, b"abc": 257, b"ab": 258, b"xyz": 259, b"abcd": 260, b"bcd": 261}
    # abcd: bc first, then abc, so bcd is never in it; xyz: neither xy nor yz is a token
    assert merges_of(ranks) == [(b"b", b"c"), (b"a", b"bc"), (b"a", b"b"), (b"abc", b"d"),
                                (b"bc", b"d")]  # fmt: skip
    ours = BytePairTokenizer("x", GPT2_PATTERN, ranks, special_ids_after(262))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    for text in ("abcd", "xyz", "xyzz", "ab", "abab", "bcd", "aabcd", "xabc abcd bcd"):
        assert theirs.encode(text).ids == ours.encode(text)


def test_the_published_merges_of_gpt2_are_found_again() -> None:
    ours, _ = vocabulary("gpt2")
    assert isinstance(ours, BytePairTokenizer)
    merges = merges_of(ours.ranks)
    assert [ours.ranks[a + b] for a, b in merges] == [*range(256, 50_256)]
