"""Plain text files: each step against Python's own on the whole file, however its blocks fall."""

import codecs
import io
import lzma
import random
import re
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from prepare.archives.streams import Stream
from prepare.chunks import DROP, END, MORE, Chunk, Stats, UnreadableError, rechunk
from prepare.config import PrepareConfig
from prepare.readers import encoding as decoding
from prepare.readers import text as plaintext
from prepare.readers.foreign import REFUSED, text_taker
from prepare.readers.text import collapse_newlines, is_clean, text_documents


def plain_documents(leaf: Stream, config: PrepareConfig, stats: Stats) -> Iterator[Chunk]:
    chunks = text_documents("a.txt", leaf, config, stats)
    return collapse_newlines(chunks) if config.collapse_newlines else chunks


def read(raw: bytes, block_bytes: int = 1 << 20, **settings: Any) -> tuple[list[bytes], Stats]:
    """Return the documents of a file that was read ``block_bytes`` at a time."""
    stats = Stats()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK_BYTES", block_bytes)
        patch.setattr(decoding, "FIRST_BYTES", min(block_bytes, 1 << 16))
        patch.setattr(plaintext, "is_clean", lambda text, config: False)  # through all steps
        leaf = io.BufferedReader(io.BytesIO(raw))
        chunks = plain_documents(leaf, PrepareConfig(**settings), stats)
        return joined(chunks), stats


def joined(chunks: Iterable[Chunk]) -> list[bytes]:
    documents = []
    text = b""
    for chunk, chunk_end in chunks:
        chunk.decode()  # each is UTF-8 by itself
        text += chunk
        if chunk_end is END:
            documents.append(text)
        if chunk_end is not MORE:
            text = b""
    assert not text
    return documents


def hub_text(text: str) -> str:
    """Return what the script of the OpenWebText data set makes of ``text``."""
    return re.sub("\n\n\n+", "\n\n", text).strip()


def with_lf(raw: bytes) -> bytes:
    """Return a short text with LF for each of its line ends."""
    if raw.count(b"\r") > 1 and b"\n" not in raw:
        return raw.replace(b"\r", b"\n")
    return re.sub(rb"\r+\n", b"\n", raw)


JUNK = [b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf"]
SOUND = ["a", "word ", "\n", "\r\n", "\r", "==", "=", "\n\n\n", "\u00e9", "\u20ac", "\U0001f600"]
BLANK = [" ", "\xa0", "\u3000", "\x85", "\x1c", "\ufffd", "\ufeff"]
sound_texts = st.lists(st.sampled_from(SOUND + BLANK), max_size=30).map("".join)
damaged_texts = st.lists(
    st.sampled_from([text.encode() for text in SOUND + BLANK] + JUNK), max_size=30
).map(b"".join)
block_sizes = st.integers(4, 40)


@settings(max_examples=400, deadline=None)
@given(
    damaged_texts | st.binary(max_size=20) | st.text(max_size=20).map(str.encode),
    st.fixed_dictionaries(
        {},
        optional={
            "newlines": st.just("keep"),
            "encoding": st.sampled_from(["utf-8", "latin-1"]),
            "separator": st.just("="),
            "strip_gutenberg": st.just(True),
        },
    ),
)
@example(b"%PDF-", {})
@example(b"<html>", {})
def test_short_files_are_passed_on_only_where_no_step_changes_them(
    raw: bytes, options: dict[str, Any]
) -> None:
    is_refused = any(re.match(rb"\s*" + begins, raw) for begins, _ in REFUSED.values())
    if is_clean(raw, PrepareConfig(**options)) and not (is_refused or text_taker(raw)):
        texts, stats = read(raw, **options)
        stats.warnings.clear()  # of markup, which stays
        assert (texts, stats) == ([raw], Stats())


@settings(max_examples=400, deadline=None)
@given(damaged_texts, block_sizes, st.booleans(), st.booleans())
def test_all_steps_in_blocks_equal_python_on_the_whole(
    raw: bytes, block_bytes: int, cut: bool, collapse: bool
) -> None:
    whole = with_lf(raw.removeprefix(codecs.BOM_UTF8)).decode("utf-8", "replace")
    expected = whole.split("==") if cut else [whole]
    found, _ = read(
        raw,
        block_bytes,
        encoding="utf-8",
        separator="==" if cut else None,
        collapse_newlines=collapse,
    )
    assert found == [(hub_text(text) if collapse else text).encode() for text in expected]


@settings(max_examples=200, deadline=None)
@given(damaged_texts, block_sizes)
def test_only_the_documents_that_are_damaged_are_counted_or_skipped(
    raw: bytes, block_bytes: int
) -> None:
    documents = with_lf(raw.removeprefix(codecs.BOM_UTF8)).split(b"==")
    sound = [text for text in documents if text.decode("utf-8", "ignore").encode() == text]
    config = {"encoding": "utf-8", "separator": "=="}
    _, replaced = read(raw, block_bytes, **config)
    found, skipped = read(raw, block_bytes, on_bad_bytes="skip", **config)
    assert found == sound
    n_damaged = len(documents) - len(sound)
    assert replaced.n_bad_bytes == skipped.n_bad_bytes == n_damaged
    assert skipped.reasons["not UTF-8"] == n_damaged == len(skipped.skipped)


@settings(max_examples=200, deadline=None)
@given(sound_texts, block_sizes, st.sampled_from(["utf-16", "utf-16-be", "utf-32", "utf-8-sig"]))
def test_text_with_a_byte_order_mark_is_decoded_by_it(
    text: str, block_bytes: int, encoding: str
) -> None:
    text = text.lstrip("\ufeff")  # a second one would be text to some, a mark to others
    raw = ("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding)
    found, stats = read(raw, block_bytes, newlines="keep")
    assert found == [text.encode()]
    assert stats.encodings.total() == (encoding != "utf-8-sig")
    assert stats.n_bad_bytes == ("\ufffd" in text and encoding != "utf-8-sig")


@settings(max_examples=200, deadline=None)
@given(sound_texts, st.sampled_from(["shift_jis", "gb18030", "cp1251", "utf-7"]), block_sizes)
def test_an_encoding_that_is_named_is_used(text: str, encoding: str, block_bytes: int) -> None:
    raw = text.encode(encoding, "ignore")
    expected = raw.decode(encoding).removeprefix("\ufeff").encode()
    found, stats = read(raw, block_bytes, encoding=encoding, newlines="keep")
    assert found == [expected]
    assert stats.encodings == {codecs.lookup(encoding).name: 1}


def test_a_file_that_is_utf8_by_its_name_is_not_counted_as_another_encoding() -> None:
    for name in ("UTF-8", "utf_8_sig", "u8"):
        found, stats = read("\ufeffcaf\u00e9".encode(), encoding=name)
        assert found == ["caf\u00e9".encode()]
        assert not stats.encodings


# Mostly the first article of the Universal Declaration of Human Rights, or its beginning.
ARTICLES = {
    "en": "Shaw\u2019s fianc\u00e9e \u2014 Zo\u00eb \u2014 paid \u00a35 for the r\u00e9sum\u00e9.",
    "fr": "Tous les \u00eatres humains naissent libres et \u00e9gaux en dignit\u00e9 et en droits.",
    "de": "Alle Menschen sind frei und gleich an W\u00fcrde geboren. Stra\u00dfen \u00fcberall.",
    "pl": "Wszyscy ludzie rodz\u0105 si\u0119 wolni i r\u00f3wni w godno\u015bci i prawach.",
    "ru": "\u0412\u0441\u0435 \u043b\u044e\u0434\u0438 \u0440\u043e\u0436\u0434\u0430\u044e"
    "\u0442\u0441\u044f \u0441\u0432\u043e\u0431\u043e\u0434\u043d\u044b\u043c\u0438 "
    "\u0438 \u0440\u0430\u0432\u043d\u044b\u043c\u0438 \u0432 \u0434\u043e\u0441"
    "\u0442\u043e\u0438\u043d\u0441\u0442\u0432\u0435",
    "ja": "\u3059\u3079\u3066\u306e\u4eba\u9593\u306f\u3001\u751f\u308c\u306a\u304c\u3089"
    "\u306b\u3057\u3066\u81ea\u7531\u3067\u3042\u308a\u3001\u304b\u3064\u3001\u5c0a"
    "\u53b3\u3068\u6a29\u5229\u3068\u306b",
    "zh": "\u4eba\u4eba\u751f\u800c\u81ea\u7531\uff0c\u5728\u5c0a\u4e25\u548c\u6743\u5229"
    "\u4e0a\u4e00\u5f8b\u5e73\u7b49\u3002\u4ed6\u4eec\u8d4b\u6709\u7406\u6027\u548c"
    "\u826f\u5fc3",
    "tw": "\u4eba\u4eba\u751f\u800c\u81ea\u7531\uff0c\u5728\u5c0a\u56b4\u548c\u6b0a\u5229"
    "\u4e0a\u4e00\u5f8b\u5e73\u7b49\u3002\u4ed6\u5011\u8ce6\u6709\u7406\u6027\u548c"
    "\u826f\u5fc3",
    "ko": "\ubaa8\ub4e0 \uc778\uac04\uc740 \ud0dc\uc5b4\ub0a0 \ub54c\ubd80\ud130 \uc790"
    "\uc720\ub85c\uc6b0\uba70 \uadf8 \uc874\uc5c4\uacfc \uad8c\ub9ac\uc5d0 \uc788"
    "\uc5b4",
}
LEGACY = [
    *[("en", "cp1252"), ("fr", "latin-1"), ("fr", "cp1252"), ("de", "latin-1"), ("pl", "cp1250")],
    *[("pl", "iso8859-2"), ("ru", "cp1251"), ("ru", "koi8-r"), ("ja", "shift_jis")],
    *[("ja", "euc_jp"), ("zh", "gb18030"), ("tw", "big5"), ("ko", "euc_kr")],
]


@pytest.mark.parametrize(("language", "encoding"), LEGACY)
@pytest.mark.parametrize("n_lines", [1, 1_000])
@pytest.mark.parametrize("before", ["", "All of this is plain English, and there is more of it.\n"])
def test_text_in_an_old_encoding_is_recognized(
    language: str, encoding: str, n_lines: int, before: str
) -> None:
    text = before * 3_000 + f"{ARTICLES[language]}\n" * n_lines  # longer than the first block
    found, stats = read(text.encode(encoding))
    assert found[0].decode() == text
    assert stats.encodings.total() == 1
    assert stats.n_bad_bytes == 0


def test_quotes_of_a_chinese_encoding_in_english_text_are_quotes(shared: Path) -> None:
    raw = (shared / "data" / "state_union" / "1973-Nixon.txt").read_bytes()
    found, stats = read(raw)
    assert stats.encodings == {"big5hkscs": 1}
    assert "the President\u2019s annual" in found[0].decode()


@pytest.mark.parametrize(
    "text", ["caf\u00e9 au lait", "It cost \u00a35 in 1954, and a \u00bd share."]
)
def test_of_codecs_that_fit_alike_the_most_frequent_is_taken(text: str) -> None:
    found, stats = read(text.encode("latin-1"))
    assert found == [text.encode()]
    assert stats.encodings == {"cp1252": 1}


def test_a_first_foreign_character_at_the_end_of_a_block_does_not_decide_alone() -> None:
    text = "x" * 63 + ARTICLES["ru"]
    assert read(text.encode("cp1251"), 64)[0] == [text.encode()]


def test_the_encoding_found_first_holds_for_the_rest_of_the_file() -> None:
    text = "plain\n" * 5 + ARTICLES["ru"] + "\n" + "plain\n" * 200 + "\u0434\u0430"
    found, _ = read(text.encode("cp1251"), 80)
    assert found == [text.encode()]


def test_after_valid_utf8_a_bad_byte_is_damage_and_no_other_encoding() -> None:
    raw = b"plain\n" * 10 + "\u00e9\u00e8\n".encode() + b"plain\n" * 10 + b"caf\xe9\n" * 9
    found, stats = read(raw, 16)
    assert found == [raw.decode("utf-8", "replace").encode()]
    assert stats.n_bad_bytes == 1
    assert not stats.encodings


def test_more_good_utf8_than_bad_in_a_block_is_damaged_utf8() -> None:
    raw = "\u00e9t\u00e9, \u00e9t\u00e9 ".encode() + b"caf\xe9, caf\xe9"
    found, stats = read(raw)
    assert found == ["\u00e9t\u00e9, \u00e9t\u00e9 caf\ufffd, caf\ufffd".encode()]
    assert stats.n_bad_bytes == 1


def test_a_first_foreign_character_at_the_very_end_of_a_file_is_recognized() -> None:
    assert read("He went to the caf\u00e9".encode("cp1252"))[0] == [
        "He went to the caf\u00e9".encode()
    ]


@pytest.mark.parametrize("block_bytes", [4, 7, 64])
@pytest.mark.parametrize(
    ("raw", "encoding", "sentence"),
    [
        (b"good==caf\xe9 au lait", "utf-8", "byte 9: 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfgood\r\n\xff", "utf-8", "byte 9: 0xff is not UTF-8"),
        (b"\xef\xbb\xbfgood\r\n\xff", "auto", "byte 9: 0xff is not UTF-8"),
        ("abcdefgh\u20ac".encode()[:-1], "utf-8", "byte 8: 0xe2 is not UTF-8"),
        (b"abcdef\x81", "cp1252", "byte 6: 0x81 is not cp1252"),
        (
            "\u3042\u3044\u3046".encode("shift_jis") + b"\xff",
            "sjis",
            "byte 6: 0xff is not shift_ji",
        ),
        ("ab\ufeff".encode("utf-16") + b"\x00\xd8a\0", "auto", "byte 8: 0x00 is not utf-16"),
    ],
)
def test_a_bad_byte_is_an_error_that_names_its_place_where_asked(
    raw: bytes, encoding: str, sentence: str, block_bytes: int
) -> None:
    with pytest.raises(DataError, match=f"^a.txt, {sentence}"):
        read(raw, block_bytes, encoding=encoding, on_bad_bytes="fail", separator="==")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_encoding_of_either_order_needs_its_mark(encoding: str) -> None:
    sentence = f"^a.txt: does not begin .* Pass --encoding {encoding}-le, or {encoding}-be"
    with pytest.raises(DataError, match=sentence):
        read("a story".encode(f"{encoding}-le"), encoding=encoding)


@pytest.mark.parametrize("on_bad_bytes", ["replace", "fail"])
def test_a_replacement_character_that_stands_in_the_file_is_no_damage(on_bad_bytes: str) -> None:
    found, stats = read("a\ufffdb".encode(), on_bad_bytes=on_bad_bytes)
    assert found == ["a\ufffdb".encode()]
    assert stats.n_bad_bytes == 0


def test_what_another_encoding_lacks_is_replaced_or_skipped_too() -> None:
    found, stats = read(b"a\x81==b", encoding="cp1252", separator="==")
    assert found == ["a\ufffd".encode(), b"b"]
    assert stats.n_bad_bytes == 1
    found, stats = read(b"b==a\x81", encoding="cp1252", separator="==", on_bad_bytes="skip")
    assert found == [b"b"]
    assert stats.skipped == [{"name": "a.txt, byte 3", "reason": "not UTF-8"}]


def test_a_damaged_document_is_dropped_after_its_first_chunks() -> None:
    stats = Stats()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK_BYTES", 8)
        patch.setattr(decoding, "FIRST_BYTES", 8)
        leaf = io.BufferedReader(io.BytesIO(b"abcdefgh" + b"\xff" + b"ijklmnop" * 3))
        config = PrepareConfig(encoding="utf-8", on_bad_bytes="skip", newlines="keep")
        found = list(plain_documents(leaf, config, stats))
    assert found == [(b"abcdefgh", MORE), (b"", DROP)]
    assert stats.skipped == [{"name": "a.txt, byte 0", "reason": "not UTF-8"}]


@pytest.mark.parametrize("name", ["nonsense", "base64", "rot13", "idna", "utf-8\0"])
def test_an_unknown_encoding_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--encoding {name}: Python has no such text encoding"):
        PrepareConfig(encoding=name)


@pytest.mark.parametrize(
    "name", ["auto", "utf-8", "UTF-16", "latin1", "koi8-r", "gb18030", "utf-7"]
)
def test_a_known_encoding_is_none(name: str) -> None:
    PrepareConfig(encoding=name)


NOISE = random.Random(0).randbytes(5_000)


@pytest.mark.parametrize(
    "raw",
    [
        b"text" * 24 + b"\0\0",
        b"\0" * 999,
        ("\ufeffx" + "\0" + "x" * 50).encode("utf-16-le"),
        NOISE,
        NOISE.replace(b"\0", b"\x01"),
        zlib.compress(NOISE),
        lzma.compress(b"".join(b"%d " % (n * n) for n in range(3_000))),
        b"\xff\xd8\xff\xe0\x10JFIF" + NOISE,
        b"header in ASCII\n" * 9_000 + NOISE * 400,
    ],
    ids=[
        *["zeros", "all zeros", "zeros in utf-16", "noise"],
        *["noise without zeros", "zlib", "xz", "jpeg", "text, then noise"],
    ],
)
def test_what_is_binary_never_comes_out_as_text(raw: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^a\.txt: binary, not text: .* Name text files"):
        read(raw)


def test_a_few_zero_bytes_are_kept() -> None:
    found, _ = read(b"x" * 300 + b"\0==y==\0z\0", separator="==")
    assert found == [b"x" * 300 + b"\0", b"y", b"\0z\0"]


def test_a_document_that_is_left_out_counts_as_one_thing_only() -> None:
    raw = b"x" * 300 + b"\0\xff==y"
    stats = Stats()
    leaf = io.BufferedReader(io.BytesIO(raw))
    config = PrepareConfig(encoding="utf-8", separator="==", on_bad_bytes="skip")
    assert joined(rechunk(plain_documents(leaf, config, stats), stats)) == [b"y"]
    assert (stats.n_bad_bytes, stats.n_with_nul) == (1, 0)


def test_a_line_end_cut_in_two_by_a_block_becomes_one() -> None:
    raw = b"\r".join(b"%d\r\n" % n for n in range(50)) + b"\r"
    for block_bytes in range(4, 12):
        found, stats = read(raw, block_bytes)
        assert found == [raw.replace(b"\r\n", b"\n")]
        assert stats.n_crlf == 1
    found, stats = read(raw, 5, newlines="keep")
    assert found == [raw]
    assert stats.n_crlf == read(b"lone \r stays")[1].n_crlf == 0


BODY = "\nProduced by volunteers\n\nCHAPTER I\n\nIt was the caf\u00e9.\n\n*** not the end ***\n"
HEADERS = [
    "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n",
    "\ufeffThe eBook\n*** START OF THIS PROJECT GUTENBERG EBOOK A VERY LONG\nTITLE INDEED ***\n",
    "***START OF THE PROJECT GUTENBERG EBOOK X***\n",
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nlegal\n"
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
    "***START OF THE PROJECT GUTENBERG EBOOK X***\nlegal\n"
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*\n",
]
FOOTERS = [
    "*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence\n",
    "***END OF THIS PROJECT GUTENBERG EBOOK X***\nlicence\n",
    "End of the Project Gutenberg EBook of X, by Y\n\n*** END OF THIS PROJECT GUTENBERG EBOOK\n",
    "  End of Project Gutenberg's X, by Y\n",
    "",
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("footer", FOOTERS)
def test_of_a_gutenberg_book_only_the_book_stays(header: str, footer: str) -> None:
    for newline in ("\n", "\r\n"):
        raw = (header + BODY + footer).replace("\n", newline).encode()
        for block_bytes in (4, 5, 11, 64, 1 << 20):
            assert read(raw, block_bytes, strip_gutenberg=True)[0] == [BODY.encode()]
    body = BODY.replace("\n", "\r\n")
    found, _ = read(raw, 9, strip_gutenberg=True, newlines="keep")
    assert found == [body.encode()]


def test_only_marks_at_the_beginning_of_lines_count() -> None:
    text = b"x" * 200 + b" *** END OF THE PROJECT GUTENBERG EBOOK\n *** START OF THE PROJECT GUTENB"
    for block_bytes in (4, 7, 1 << 20):
        assert read(text, block_bytes, strip_gutenberg=True)[0] == [text]


def test_a_file_is_read_to_its_end_behind_the_end_of_the_book() -> None:
    raw = b"book\n" + FOOTERS[0].encode() + b"licence\n" * 20_000 + b"\0" * 5_000
    with pytest.raises(UnreadableError, match="binary, not text"):
        read(raw, 1 << 16, strip_gutenberg=True)


def test_a_start_mark_far_into_a_file_is_none() -> None:
    text = b"a line\n" * 10_000 + HEADERS[0].encode() + b"more\n"
    assert read(text, strip_gutenberg=True)[0] == [text]


def test_gutenberg_marks_stay_where_nothing_was_said() -> None:
    text = (HEADERS[0] + BODY + FOOTERS[0]).encode()
    assert read(text)[0] == [text]


@pytest.mark.parametrize("separator", ["aab", "aa", r"\n\t", "\u20ac", "abcabcabd"])
def test_a_separator_across_blocks_cuts_as_str_split_does(separator: str) -> None:
    rng = random.Random(0)
    text = separator.replace(r"\n", "\n").replace(r"\t", "\t")
    for _ in range(50):
        parts = [rng.choice([text, text[:-1], "a", "abc", "\u20ad"]) for _ in range(20)]
        whole = "".join(parts)
        found, _ = read(whole.encode(), rng.randrange(4, 20), separator=separator)
        assert found == [part.encode() for part in whole.split(text)]


def test_an_empty_file_is_one_empty_document() -> None:
    for raw in (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE):
        assert read(raw, collapse_newlines=True, strip_gutenberg=True)[0] == [b""]
        assert read(raw, separator="==")[0] == [b""]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(sound_texts, min_size=1), min_size=1))
def test_newlines_are_collapsed_as_the_hub_does_however_a_document_is_cut(
    documents: list[list[str]],
) -> None:
    stream: list[Chunk] = []
    for parts in documents:
        stream += [(part.encode(), MORE) for part in parts[:-1]] + [(parts[-1].encode(), END)]
    expected = [hub_text("".join(parts)).encode() for parts in documents]
    assert joined(collapse_newlines(iter(stream))) == expected


def test_a_dropped_document_leaves_no_whitespace_to_the_next() -> None:
    stream = [(b"a \n", MORE), (b"", DROP), (b" \n", MORE), (b"", DROP), (b"b", END)]
    assert list(collapse_newlines(iter(stream))) == [
        (b"a", MORE),
        (b"", DROP),
        (b"", DROP),
        (b"b", END),
    ]


def test_whitespace_longer_than_a_chunk_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaintext, "MAX_CHUNK_BYTES", 10)
    spaces = [(b" " * 8, MORE)] * 3
    assert joined(collapse_newlines(iter([*spaces, (b"a", MORE), *spaces, (b"b", END)]))) == [
        b"a" + b" " * 24 + b"b"
    ]
    assert joined(collapse_newlines(iter([(b"a", MORE), *spaces, (b"", END)]))) == [
        b"a" + b" " * 16
    ]


class Repeated(io.RawIOBase):
    """A file that holds one block again and again."""

    def __init__(self, block: bytes, n_blocks: int) -> None:
        self.block = block
        self.n_left = n_blocks

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.n_left or len(buffer) < len(self.block):
            assert not self.n_left
            return 0
        self.n_left -= 1
        buffer[: len(self.block)] = self.block
        return len(self.block)


@pytest.mark.parametrize(
    "line", [b"a line of ASCII \r\n", ("\u0434\u0430 " * 5 + "\n").encode("cp1251"), b" "]
)
def test_memory_does_not_grow_with_the_file(line: bytes) -> None:
    block = line * (65_536 // len(line))
    config = PrepareConfig(separator="==", strip_gutenberg=True, collapse_newlines=True)

    def peak(n_blocks: int) -> int:
        leaf = io.BufferedReader(Repeated(block, n_blocks), 1 << 16)
        tracemalloc.start()
        chunks: Iterator[Chunk] = plain_documents(leaf, config, Stats())
        for _ in chunks:
            pass
        n_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return n_bytes

    peak(2)  # what the detector loads stays
    assert peak(160) < peak(80) + 250_000  # 5 MB more to read; all buffers are full before 80


CYRILLIC = (
    "\u0417\u0438\u043c\u043e\u0439 \u0432 \u0434\u0435\u0440\u0435\u0432\u043d\u0435 "
    "\u0442\u0438\u0445\u043e, \u0438 \u0441\u043d\u0435\u0433 \u043b\u0435\u0436\u0438"
    "\u0442.\n\u041c\u044b \u043f\u044c\u0451\u043c \u0447\u0430\u0439 \u0438 \u0447"
    "\u0438\u0442\u0430\u0435\u043c \u043a\u043d\u0438\u0433\u0438.\n"
)
HAN = (
    "\u51ac\u5929\u7684\u6751\u5e84\u5f88\u5b89\u9759\uff0c\u96ea\u843d\u5728\u5c4b\u9876"
    "\u4e0a\u3002\u6211\u4eec\u559d\u8336\uff0c\u770b\u4e66\u3002\n"
)
KANA = "\u51ac\u306e\u6751\u306f\u9759\u304b\u3067\u3059\u3002\n"
HANGUL = "\uaca8\uc6b8 \ub9c8\uc744\uc740 \uc870\uc6a9\ud558\ub2e4.\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("text without a byte-order mark", "utf-16-le"),
        ("\u0434\u0430 \u043d\u0435\u0442", "utf-16-be"),
        (CYRILLIC * 900, "utf-16-le"),
        (CYRILLIC * 3, "cp866"),
        ("In ASCII\n" * 9_000 + CYRILLIC * 90, "cp866"),
        (KANA * 3, "iso2022_jp"),
        ("Subject: in ASCII\n" * 9_000 + KANA, "iso2022_jp"),
        (HANGUL, "iso2022_kr"),
    ],
)
def test_an_encoding_that_shows_is_read_without_being_named(text: str, encoding: str) -> None:
    found, stats = read(text.encode(encoding), newlines="keep")
    assert found == [text.encode()]
    assert stats.encodings == {encoding: 1}
    assert stats.n_bad_bytes == 0


@pytest.mark.parametrize("encoding", ["cp1252", "gb18030"])
def test_lines_in_utf8_behind_others_are_read_as_what_they_are(encoding: str) -> None:
    """As files joined by hand have them; a line of either kind may stand anywhere."""
    first = "It was the caf\u00e9, \u201cour\u201d caf\u00e9.\n" if encoding == "cp1252" else HAN
    then = (
        "A caf\u00e9 in Z\u00fcrich.\n"
        if encoding == "cp1252"
        else CYRILLIC.replace("\n", "") + "\n"
    )
    raw = first.encode(encoding) * 40_000 + then.encode() * 60_000 + first.encode(encoding)
    found, stats = read(raw, newlines="keep")
    assert found == [(first * 40_000 + then * 60_000 + first).encode()]
    assert len(stats.warnings) == 1
    assert f"some lines are in UTF-8 and some in {encoding}" in stats.warnings[0]
    assert stats.n_bad_bytes == 0


@pytest.mark.parametrize("end", ["\r", "\r\r\n", "\r\n"])
def test_every_kind_of_line_end_becomes_lf_and_is_counted(end: str) -> None:
    text = "one\n\ntwo\n==\nthree\n" * 9_000
    found, stats = read(text.replace("\n", end).encode(), separator="\\n==\\n")
    assert found == [part.encode() for part in text.split("\n==\n")]
    assert stats.n_crlf == 1
