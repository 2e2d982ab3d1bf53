"""Text as it comes is the text as a whole, wherever characters are cut."""

from collections.abc import Iterator

import pytest

from common.tokenizer import CharTokenizer
from sample.stream import stream_text
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


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_byte_at_a_time_gives_the_text_in_whole_characters(text: str) -> None:
    pieces = list(stream_text(list(text.encode("utf-8")), BYTES))
    assert pieces == list(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_cut_at_any_byte_ends_as_decoding_it_whole_would(text: str) -> None:
    raw = text.encode("utf-8")
    for n_bytes in range(len(raw) + 1):
        streamed = "".join(stream_text(list(raw[:n_bytes]), BYTES))
        assert streamed == raw[:n_bytes].decode("utf-8", "replace")


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"a\x80b", b"\xe7\xa3", b"\xe7a", b"\xf0\x9f\x98a", b"\xed\xa0\x80"]
)
def test_bytes_that_form_no_character_become_replacement_characters(raw: bytes) -> None:
    streamed = "".join(stream_text(list(raw), BYTES))
    assert streamed == raw.decode("utf-8", "replace")
    assert "\ufffd" in streamed


def test_special_ids_add_nothing() -> None:
    ids = [*BYTES.special_tokens.values(), *"\u00e9".encode()]
    ids.insert(-1, BYTES.eot_id)  # between the two bytes
    assert list(stream_text(ids, BYTES)) == ["\u00e9"]


def test_characters_come_one_by_one() -> None:
    tokenizer = CharTokenizer(("a", "\u78e8"))
    assert list(stream_text([1, 0, 1], tokenizer)) == ["\u78e8", "a", "\u78e8"]


def test_text_is_there_before_the_next_id_is_asked_for() -> None:
    asked: list[int] = []

    def ids() -> Iterator[int]:
        for idx in b"abc":
            asked.append(idx)
            yield idx

    stream = stream_text(ids(), BYTES)
    assert next(stream) == "a"
    assert asked == [ord("a")]
