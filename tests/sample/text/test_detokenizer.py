"""A row's tokens as pieces: text = decoded text, stop texts not shown, tokens beside their text."""

import pytest

from common.inference.decoder import Token
from sample.text.detokenizer import Piece, Reading
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = {
    "emoji": "a \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 z",  # a family of three is one
    "Chinese": "\u78e8\u5b50\u8f6c\u52a8\u3002",
    "Cyrillic": "\u0436\u0451\u0440\u043d\u043e\u0432",
    "accents": "m\u00fchle e\u0301\n\u00e9",
    "ASCII": "quern\r\n",
    "none": "",
}


def read(text: bytes, stops: tuple[str, ...] = (), n_new: int = 1000) -> list[Piece]:
    """Return the pieces of ``text`` read a byte a token, until an end; then end-of-text comes."""
    reading = Reading(BYTES, n_new, stops)
    pieces: list[Piece] = []
    for i, idx in enumerate([*text, BYTES.eot_id]):
        pieces.append(reading.take(Token(idx, -float(i), ())))
        if pieces[-1].is_last:
            break
    return pieces


def joined(pieces: list[Piece]) -> tuple[str, list[int], list[int], str | None]:
    return (
        "".join(piece.text for piece in pieces),
        [token.idx for piece in pieces for token in piece.tokens],
        [start for piece in pieces for start in piece.starts],
        pieces[-1].finish,
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_byte_at_a_time_gives_the_text_in_whole_characters(text: str) -> None:
    assert [piece.text for piece in read(text.encode()) if piece.text] == list(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_cut_at_any_byte_ends_as_decoding_it_whole_would(text: str) -> None:
    raw = text.encode()
    for n_bytes in range(len(raw) + 1):
        assert joined(read(raw[:n_bytes]))[0] == raw[:n_bytes].decode("utf-8", "replace")


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"a\x80b", b"\xe7\xa3", b"\xe7a", b"\xf0\x9f\x98a", b"\xed\xa0\x80"]
)
def test_bytes_that_form_no_character_become_replacement_characters(raw: bytes) -> None:
    shown = joined(read(raw))[0]
    assert shown == raw.decode("utf-8", "replace")
    assert "\ufffd" in shown


def test_text_tokens_and_where_each_begins() -> None:
    text = "a\u00fc\U0001f600b".encode()
    assert joined(read(text)) == (
        "a\u00fc\U0001f600b", list(text), [0, 1, 1, 2, 2, 2, 2, 3], "stop",
    )  # fmt: skip
    by_piece = [(piece.text, len(piece.tokens)) for piece in read(text)]
    assert by_piece == [
        ("a", 1), ("", 0), ("\u00fc", 2), ("", 0), ("", 0), ("", 0), ("\U0001f600", 4), ("b", 1),
        ("", 0),
    ]  # fmt: skip


def test_a_character_cut_short_becomes_a_mark_and_its_tokens_are_there() -> None:
    assert joined(read("a\u20ac".encode()[:3], n_new=3)) == (
        "a\ufffd", [97, 0xE2, 0x82], [0, 1, 1], "length",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "stops", "shown", "finish"),
    [
        (b"one two three", ("two",), "one ", "stop"),
        (b"one two three", ("two", "e t"), "on", "stop"),
        (b"aab", ("aab",), "", "stop"),
        (b"aaab", ("aab",), "a", "stop"),
        (b"abab", ("abc",), "abab", "stop"),
        ("\u00fc\u00e9".encode(), ("\u00e9",), "\u00fc", "stop"),
    ],
)
def test_stop_texts_end_an_answer_and_are_not_shown(
    text: bytes, stops: tuple[str, ...], shown: str, finish: str
) -> None:
    got, ids, _, why = joined(read(text, stops))
    assert (got, why) == (shown, finish)
    assert ids == list(shown.encode()), "no token of a text that is not shown"


def test_what_may_begin_a_stop_text_is_shown_when_it_does_not() -> None:
    pieces = read(b"ab!", ("abc",))
    assert [piece.text for piece in pieces] == ["", "", "ab!", ""]
    assert [len(piece.tokens) for piece in pieces] == [0, 0, 3, 0]


def test_tokens_are_counted_also_those_of_a_stop_text_but_not_end_of_text() -> None:
    assert read(b"abcd", ("cd",))[-1].n_tokens == 4
    assert read(b"abcd")[-1].n_tokens == 4
    assert read(b"abcd", n_new=2)[-1].n_tokens == 2
