"""A row's tokens as deltas: text = decoded text, stop texts not shown, tokens beside their text."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.inference.decoder import Token
from common.tokenizer import BytePairTokenizer
from sample.text.detokenizer import Detokenizer, TextDelta
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


def detokenize(
    text: bytes, stops: tuple[str, ...] = (), n_new: int = 1000, **options: Any
) -> list[TextDelta]:
    """Return the deltas of ``text`` pushed a byte a token, until an end; then end-of-text comes."""
    detokenizer = Detokenizer(BYTES, n_new, stops, **options)
    deltas: list[TextDelta] = []
    for i, idx in enumerate([*text, BYTES.eot_id]):
        deltas.append(detokenizer.push(Token(idx, -float(i), ())))
        if deltas[-1].is_last:
            break
    return deltas


def joined(deltas: list[TextDelta]) -> tuple[str, list[int], list[int], str | None]:
    return (
        "".join(delta.text for delta in deltas),
        [token.idx for delta in deltas for token in delta.tokens],
        [offset for delta in deltas for offset in delta.text_offsets],
        deltas[-1].finish_reason,
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_byte_at_a_time_gives_the_text_in_whole_characters(text: str) -> None:
    assert [delta.text for delta in detokenize(text.encode()) if delta.text] == list(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_cut_at_any_byte_ends_as_decoding_it_whole_would(text: str) -> None:
    raw = text.encode()
    for n_bytes in range(len(raw) + 1):
        assert joined(detokenize(raw[:n_bytes]))[0] == raw[:n_bytes].decode("utf-8", "replace")


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"a\x80b", b"\xe7\xa3", b"\xe7a", b"\xf0\x9f\x98a", b"\xed\xa0\x80"]
)
def test_bytes_that_form_no_character_become_replacement_characters(raw: bytes) -> None:
    shown = joined(detokenize(raw))[0]
    assert shown == raw.decode("utf-8", "replace")
    assert "\ufffd" in shown


def test_text_tokens_and_where_each_begins() -> None:
    text = "a\u00fc\U0001f600b".encode()
    assert joined(detokenize(text)) == (
        "a\u00fc\U0001f600b", list(text), [0, 1, 1, 2, 2, 2, 2, 3], "stop",
    )  # fmt: skip
    by_delta = [(delta.text, len(delta.tokens)) for delta in detokenize(text)]
    assert by_delta == [
        ("a", 1), ("", 0), ("\u00fc", 2), ("", 0), ("", 0), ("", 0), ("\U0001f600", 4), ("b", 1),
        ("", 0),
    ]  # fmt: skip


def test_a_character_cut_short_becomes_a_mark_and_its_tokens_are_there() -> None:
    assert joined(detokenize("a\u20ac".encode()[:3], n_new=3)) == (
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
    got, ids, _, why = joined(detokenize(text, stops))
    assert (got, why) == (shown, finish)
    assert ids == list(shown.encode()), "no token of a text that is not shown"


def test_what_may_begin_a_stop_text_is_shown_when_it_does_not() -> None:
    deltas = detokenize(b"ab!", ("abc",))
    assert [delta.text for delta in deltas] == ["", "", "ab!", ""]
    assert [len(delta.tokens) for delta in deltas] == [0, 0, 3, 0]


def test_tokens_are_counted_also_those_of_a_stop_text_but_not_end_of_text() -> None:
    assert detokenize(b"abcd", ("cd",))[-1].n_tokens == 4
    assert detokenize(b"abcd")[-1].n_tokens == 4
    assert detokenize(b"abcd", n_new=2)[-1].n_tokens == 2


STRIPPED: dict[str, Any] = {"strip_start": True, "strip_end": True}


@given(st.text("ab \n\u3000\u00fc", max_size=12), st.sampled_from(["a", "b a", "\n", " "]))
def test_blanks_around_an_answer_are_not_shown_nor_their_tokens(text: str, stop: str) -> None:
    raw = text.encode()
    shown, ids, offsets, _ = joined(detokenize(raw, **STRIPPED))
    assert shown == text.strip()
    assert bytes(ids) == shown.encode()
    assert offsets == [i for i, character in enumerate(shown) for _ in character.encode()]
    assert joined(detokenize(raw, (stop,), **STRIPPED))[0] == shown.partition(stop)[0].rstrip()
    begun = joined(detokenize(raw, template_stops=(stop,), **STRIPPED))[0]
    assert begun == text.partition(stop)[0].strip()


def test_a_client_s_stop_text_is_looked_for_in_what_is_shown_a_template_s_in_all() -> None:
    answer = b" Hello there\nUser: "
    options = STRIPPED | {"template_stops": ("\nUser:",)}
    assert joined(detokenize(answer, (" ",), **options))[0] == "Hello"
    assert joined(detokenize(answer, **options))[::3] == ("Hello there", "stop")
    assert joined(detokenize(b"\nUser: Hi", **options))[::3] == ("", "stop")


def test_a_token_that_is_partly_blank_stays_whole() -> None:
    words = BytePairTokenizer("words", "", {b" ab": 0, b" ": 1}, BYTES.special_tokens)
    detokenizer = Detokenizer(words, 9, **STRIPPED)
    deltas = [detokenizer.push(Token(idx, 0.0)) for idx in (1, 0, 1)]
    assert joined(deltas)[:3] == ("ab", [0], [0])


def test_tokens_of_a_prompt_and_of_the_end_stand_at_their_characters() -> None:
    prompt = [BYTES.eot_id, *"a\u4e16b".encode()]
    detokenizer = Detokenizer(BYTES, 9, n_echoed=3, names_end=True)
    scored = [Token(idx, -1.0) for idx in prompt[1:]]
    echoed = detokenizer.echo(prompt, scored)
    assert math.isnan(echoed.tokens[0].logprob)
    assert echoed.tokens[1:] == tuple(scored)
    assert echoed.text_offsets == (0, 0, 1, 1, 1, 2)  # of a character's bytes all are at its place
    deltas = [detokenizer.push(Token(idx, -2.0)) for idx in (*b"c", BYTES.eot_id)]
    assert joined(deltas) == ("c", [*b"c", BYTES.eot_id], [3, 4], "stop")
    assert deltas[-1].n_tokens == 1
    assert detokenizer.echo([], []).tokens == ()
