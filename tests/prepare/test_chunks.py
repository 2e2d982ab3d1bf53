"""Chunks of documents: cutting changes no id, and nothing is lost, however they come in."""

import functools
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from prepare import chunks
from prepare.chunks import DROP, END, MORE, NAME, Chunk, Stats, rechunk, utf8_prefix_len
from prepare.tokens.vocab_and_split import train_bpe

# Source: tiktoken 0.14.0, tiktoken_ext/openai_public.py.
PATTERNS = {
    "gpt2": (
        r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    ),
    "cl100k_base": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"""
        r""" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    ),
    "o200k_base": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"""
            r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"""
            r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}
# What the patterns treat unlike one another, or bytes can be mistaken in.
HOSTILE = [
    *["a", "Z", "9", "12345", "'s", "'LL", "'\u017f", "don't", "!", "...", "/", "~", "\x7f", "_"],
    *[" ", "  ", "\n", "\n\n", "\r", "\r\n", "\t", "\x0b", "\x1c", "\0", "\x85", "\xa0", "\xad"],
    *["\u1680", "\u180e", "\u2003", "\u2028", "\u202f", "\u205f", "\u3000", "\ufeff", "\u200d"],
    *["\u00e9", "e\u0301", "\u00df", "\u0416", "\u0301", "\u05d0", "\u0e01", "\u0e31", "\uac00"],
    *[
        "\u4e2d",
        "\u5929",
        "\u8fff",
        "\u9f7f",
        "\u4e00",
        "\u9fff",
        "\u4dff",
        "\u3042",
        "\u3099",
        "\u30a2",
        "\u3001",
    ],
    *["\u3002", "\uff0c", "\uff01", "\uff1f", "\u00b2", "\u0660", "\u2160", "\U0001f600"],
    *["\U0001f469\u200d\U0001f4bb", "\U00020000", "the quick", "\u5929\u5730\u3002", "\ufffd"],
]
hostile_texts = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.characters(exclude_categories=["Cs"]), st.text(" \na")),
    max_size=80,
).map("".join)


@functools.cache
def encodings() -> list[tiktoken.Encoding]:
    """Return an encoding for each pattern; one vocabulary, of the hostile parts, serves all."""
    text = " ".join(a + b for a in HOSTILE for b in HOSTILE[::3])
    ranks = train_bpe([text.encode()], 1_000).ranks
    return [
        tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        for name, pattern in PATTERNS.items()
    ]


ALL_SPACES = [c for c in map(chr, range(0x110000)) if c.isspace()]


def cut(parts: Iterable[Chunk], chunk_bytes: int) -> tuple[list[Chunk], Stats]:
    stats = Stats()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MAX_CHUNK_BYTES", chunk_bytes)
        return list(rechunk(iter(parts), stats)), stats


def ids(encoding: tiktoken.Encoding, parts: Iterable[Chunk]) -> list[int]:
    return [token for text, _ in parts for token in encoding.encode_ordinary(text.decode())]


@settings(max_examples=400, deadline=None)
@given(hostile_texts, st.integers(10, 200))
def test_cut_at_borders_the_ids_are_those_of_the_whole(text: str, chunk_bytes: int) -> None:
    found, stats = cut([(text.encode(), END)], chunk_bytes)
    if stats.n_forced_cuts == 0 and kept(found):
        for encoding in encodings():
            assert ids(encoding, found) == encoding.encode_ordinary(text), encoding.name


@settings(max_examples=300, deadline=None)
@given(hostile_texts)
def test_every_border_of_a_text_is_one_in_all_patterns(text: str) -> None:
    raw = text.encode()
    while border := chunks.SAFE_SPLIT.match(raw):
        left, right = raw[: border.end()], text.encode()[border.end() :]
        assert left
        for encoding in encodings():
            both = encoding.encode_ordinary(left.decode()) + encoding.encode_ordinary(
                right.decode()
            )
            assert both == encoding.encode_ordinary(text), encoding.name
        raw = left[:-1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(hostile_texts, st.sampled_from([END, END, DROP]))), st.data())
def test_however_a_stream_was_cut_the_same_chunks_come_out(
    documents: list[tuple[str, chunks.ChunkEnd]], data: st.DataObject
) -> None:
    whole, parts = [], []
    for text, chunk_end in documents:
        rest = text.encode()
        if chunk_end is DROP:
            parts += [(rest, MORE), (b"", DROP)]
            continue
        whole.append((rest, END))
        for _ in range(data.draw(st.integers(0, 3))):
            n_bytes = utf8_prefix_len(rest[: data.draw(st.integers(0, len(rest)))])
            parts.append((rest[:n_bytes], MORE))
            rest = rest[n_bytes:]
        parts.append((rest, END))
    chunk_bytes = data.draw(st.integers(10, 100))
    expected, counted = cut(whole, chunk_bytes)
    found, stats = cut(parts, chunk_bytes)
    assert kept(found) == kept(expected)
    assert stats.n_empty == counted.n_empty == len(whole) - len(kept(expected))
    for chunks_of_one in kept(found):
        assert all(0 < len(text) <= chunk_bytes for text in chunks_of_one)
        assert all(text.decode() for text in chunks_of_one)
    joined = [b"".join(chunks_of_one) for chunks_of_one in kept(found)]
    assert joined == [text for text, _ in whole if text.strip()]


def kept(parts: list[Chunk]) -> list[list[bytes]]:
    """Return the chunks of each document that was not dropped."""
    documents: list[list[bytes]] = []
    open_chunks: list[bytes] = []
    for text, chunk_end in parts:
        open_chunks.append(text)
        if chunk_end is END:
            documents.append(open_chunks)
        if chunk_end is not MORE:
            open_chunks = []
    assert not open_chunks
    return documents


def test_no_border_is_in_a_run_of_spaces_of_any_kind() -> None:
    for space in ALL_SPACES:
        border = chunks.SAFE_SPLIT.match(f"a{space}  b".encode())
        assert border is None or border.end() == 1, repr(space)


def test_real_text_cut_small_has_the_ids_of_gpt2(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared / "tiktoken").is_dir():
        pytest.skip("the published vocabulary is not there")
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    encoding = tiktoken.get_encoding("gpt2")
    for name in ("tinyshakespeare.txt", "wikitext-2/test.txt"):
        raw = (shared / "data" / name).read_bytes()[:300_000]
        raw = raw[: utf8_prefix_len(raw)]
        found, stats = cut([(raw, END)], 200)
        assert stats.n_forced_cuts == 0
        assert len(found) > 1_000
        assert ids(encoding, found) == encoding.encode_ordinary(raw.decode())


@pytest.mark.parametrize(
    "sentence",
    [
        "The quick brown fox. ",
        "one more line\n",
        "\u0e44\u0e17\u0e22\u0e44\u0e17\u0e22 ",
        "\u5929\u5730\u7384\u9ec4\uff0c\u5b87\u5b99\u6d2a\u8352\u3002\n",
        "\u5929\u5730\u7384\u9ec4\n\n",
        "\u3053\u3093\u306b\u3061\u306f\u3002\n\u3000",
        "\u0627\u0644\u0646\u0627\u0633 \u0623\u062d\u0631\u0627\u0631\u060c ",
        "\uc0ac\ub78c \uc0ac\ub78c ",
    ],
    ids=["English", "lines", "Thai", "Chinese", "verse", "Japanese", "Arabic", "Korean"],
)
def test_ordinary_text_of_any_script_has_borders(sentence: str) -> None:
    found, stats = cut([(sentence.encode() * 50, END)], 64)
    assert stats.n_forced_cuts == 0
    assert len(found) >= 5


def test_a_run_without_a_border_is_cut_between_characters_and_counted() -> None:
    found, stats = cut([("\u30a2".encode() * 10, END)], 10)
    assert [len(text) for text, _ in found] == [9, 9, 9, 3]
    assert stats.n_forced_cuts == 3


def test_a_document_found_to_be_none_is_dropped_wherever_it_was() -> None:
    stream = [(b"a " * 20, MORE), (b"", DROP), (b"b", MORE), (b"", DROP), (b"c", END)]
    found, stats = cut(stream, 10)
    assert found[-3:] == [(b"", DROP), (b"", DROP), (b"c", END)]
    assert all(chunk_end is MORE for _, chunk_end in found[:-3])
    assert stats.n_empty == 0


def test_a_long_blank_document_is_dropped_and_counted_once() -> None:
    found, stats = cut([(b" \n" * 50, MORE), (b"\t", END), (b"a", END)], 10)
    assert found[-2:] == [(b"", DROP), (b"a", END)]
    assert stats.n_empty == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", 0),
        (b"abc", 3),
        ("a\u00e9".encode(), 3),
        ("a\u00e9".encode()[:-1], 1),
        ("a\u20ac".encode()[:-1], 1),
        ("a\u20ac".encode()[:-2], 1),
        ("a\U0001f600".encode()[:-1], 1),
        ("a\U0001f600".encode(), 5),
        (b"\x80\x80\x80\x80\x80", 5),
        (b"a\x80", 2),
    ],
)
def test_a_character_that_is_not_whole_is_left_for_the_next_chunk(
    raw: bytes, expected: int
) -> None:
    assert utf8_prefix_len(raw) == expected


def test_the_rest_of_a_large_chunk_is_not_copied_for_each_one_cut_off() -> None:
    raw = b"the quick brown fox " * 400_000
    start = time.perf_counter()
    bytes(bytearray(raw))
    copied = time.perf_counter() - start
    start = time.perf_counter()
    found, _ = cut([(raw, END)], 1 << 12)
    assert len(found) > 1_900  # copies, at half the size
    assert time.perf_counter() - start < 100 * copied


def test_the_last_border_of_ordinary_text_is_found_without_reading_all_of_it() -> None:
    raw = b"the quick brown fox " * 200_000
    start = time.perf_counter()
    assert chunks.SAFE_SPLIT.match(raw) is not None
    n_seconds = time.perf_counter() - start
    start = time.perf_counter()
    re.compile(rb"(?s:.*)(?=!)").match(raw)  # as much, but read to its beginning
    assert n_seconds < (time.perf_counter() - start) / 20


def test_documents_with_zero_bytes_are_counted_once_and_only_if_kept() -> None:
    stats = Stats()
    dropped: list[Chunk] = [(b"x\0", MORE), (b"", DROP)]
    kept: list[Chunk] = [(b"\0y", MORE), (b"z\0", END), (b"y", END), (b"\0", END)]
    assert list(rechunk(iter([(b"a", NAME), *dropped, *kept]), stats)) == [
        (b"a", NAME),
        (b"", DROP),
        (b"\0yz\0", END),
        (b"y", END),
        (b"\0", END),
    ]
    assert stats.n_with_nul == 2
