"""The bytes of a plain file -> UTF-8, from whatever encoding they are in, block by block.

A byte-order mark says which, or zeros at each other byte, or the escapes of ISO 2022; else UTF-8;
else, where all before was ASCII, what chardet takes the first other block for: then lines that are
UTF-8 are read as that all the same. What could not be decoded stays in the blocks as bytes that
occur in no UTF-8, for the document it falls into to pay for.
"""

import codecs
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain, groupby
from typing import Any

from prepare.archives.streams import HEAD_BYTES, Stream, decode, stream_of
from prepare.chunks import Stats, UnreadableError, utf8_prefix_len
from prepare.config import PrepareConfig

FIRST_BYTES = HEAD_BYTES  # asked for at once: most files are shorter, and a large buffer costs time
BLOCK_BYTES = 1 << 20
# As much of these is no text in any encoding: C0 without BS, HT, LF, VT, FF, CR and ESC.
MAX_CONTROL_SHARE = 0.01
CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
NOT_ASCII = bytes(range(128, 256))
REPLACEMENT = "\ufffd".encode()
UNDECODED = b"\xff"  # what a decoder replaced, until _replace_invalid: in no UTF-8

BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ISO_2022_CODECS = {b"\x1b$@": "iso2022_jp", b"\x1b$B": "iso2022_jp", b"\x1b$)C": "iso2022_kr"}
ISO_2022 = re.compile(rb"\x1b\$(?:[@B]|\)C)")  # escapes to characters of two bytes
WIDE_BYTES = 4_096  # looked at for UTF-16 without a mark
MIN_WIDE_SHARE = 0.04  # of zeros: in other alphabets spaces and line ends have one
SAMPLE_BYTES = 1 << 16  # of lines that are not ASCII; a few hundred bytes are enough to tell
TYPOGRAPHY = set("\u00a0\u3000\u2018\u2019\u201c\u201d\u2013\u2014\u2022\u2026")
TYPOGRAPHIC_CODECS = ("cp1252", "gb18030", "big5hkscs", "cp932", "cp949")
# By chardet's scores sentences of 60 characters came out right in 548 of 550 cases in 18 languages
# (at 0.5 in 520), and words and phrases of 20 in 477 of 498 (at 0.8 in 472).
NEAR_BEST = 0.7
MIN_SCORE = 0.2  # below, or where it gives control characters, a code page of DOS may be better
C1_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")  # but for NEL


def json_head(name: str, head: bytes, config: PrepareConfig) -> tuple[str, bytes]:
    """Return the codec of a file that begins so, if it is JSON, and its beginning in UTF-8."""
    encoding = _json_encoding(name, head, config)
    if encoding != "utf-8":
        head = head.decode(encoding, "replace").removeprefix("\ufeff").encode("utf-8", "replace")
    return encoding, head


def _json_encoding(name: str, head: bytes, config: PrepareConfig) -> str:
    marks = (codec for mark, codec in BYTE_ORDER_MARKS.items() if head.startswith(mark))
    if encoding := next(marks, ""):
        return encoding
    if config.encoding != "auto":
        return codecs.lookup(config.encoding).name.removesuffix("-sig")
    return wide_codec(head) or ("utf-8" if head.isascii() else _detect_encoding(name, head))


def json_in_utf8(name: str, stream: Stream, encoding: str, stats: Stats) -> Stream:
    """Return a stream of what is in ``encoding`` in UTF-8."""
    if encoding == "utf-8":
        return stream
    stats.encodings[encoding] += 1
    blocks = iter(partial(stream.read, BLOCK_BYTES), b"")
    texts = decode(name, blocks, encoding, "replace", 0)
    return stream_of(text.encode("utf-8", "replace") for text in texts)


def wide_codec(head: bytes) -> str:
    """Return the codec of UTF-16 without a byte-order mark, or "" where it is something else."""
    head = head[: WIDE_BYTES & -2]
    zeros = {"utf-16-be": head[::2].count(0), "utf-16-le": head[1::2].count(0)}
    codec = max(zeros, key=zeros.__getitem__)
    if zeros[codec] < max(1, MIN_WIDE_SHARE * len(head)) or min(zeros.values()) > 0:
        return ""
    text = head.decode(codec, "replace").removesuffix("\ufffd")  # half of a pair
    return codec if all(c.isprintable() or c.isspace() for c in text) else ""


def utf8_blocks(name: str, stream: Stream, config: PrepareConfig, stats: Stats) -> Iterator[bytes]:
    """Yield a file as UTF-8, what is wrong in it left as other bytes."""
    block = stream.read(FIRST_BYTES)
    blocks = iter(partial(stream.read, BLOCK_BYTES), b"")
    n_passed = 0
    if config.encoding != "auto":
        encoding = codecs.lookup(config.encoding).name.removesuffix("-sig")
    else:
        marks = (codec for mark, codec in BYTE_ORDER_MARKS.items() if block.startswith(mark))
        encoding = next(marks, "") or wide_codec(block)
    is_guess = False
    while not encoding:
        if not block.isascii():
            block += next(blocks, b"")  # its first such character may be at its very end
            encoding = _detect_encoding(name, block)
            is_guess = encoding != "utf-8"
        elif escape := ISO_2022.search(block):
            encoding = ISO_2022_CODECS[escape.group()]
        elif block:
            yield block  # ASCII, which is the same in every encoding that has to be detected
            n_passed += len(block)
            block = next(blocks, b"")
        else:
            return
    if encoding != "utf-8":
        stats.encodings[encoding] += 1
    elif n_passed == 0 and block.startswith(codecs.BOM_UTF8):
        n_passed = len(codecs.BOM_UTF8)
        block = block[n_passed:]
    blocks = chain([block], blocks)
    if encoding == "utf-8" and config.on_bad_bytes != "fail":
        yield from _align_to_characters(blocks)
    elif is_guess:
        yield from _judged_by_line(name, blocks, encoding, n_passed, config, stats)
    else:
        yield from _transcode(name, blocks, encoding, n_passed, config)


def _align_to_characters(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        text = held + block
        cut = utf8_prefix_len(text)
        yield text[:cut]
        held = text[cut:]
    yield held


def _judged_by_line(
    name: str,
    blocks: Iterator[bytes],
    encoding: str,
    n_before: int,
    config: PrepareConfig,
    stats: Stats,
) -> Iterator[bytes]:
    """Yield in UTF-8 the lines that are in ``encoding``, and those that are UTF-8 already."""
    # two bytes can be a character in both, where the codec has characters of two
    is_single = len(bytes(range(0xC0, 0xF0)).decode(encoding, "replace")) == 0xF0 - 0xC0
    n_least, n_utf8, held = 1 if is_single else 10, 0, b""

    def is_utf8(line: bytes) -> bool:
        try:
            return len(line) - len(line.decode()) >= n_least
        except UnicodeDecodeError:
            return False

    for block in blocks:
        text, newline, rest = (held + block).rpartition(b"\n")
        if not newline:  # a line of a block or more
            yield from _transcode(name, chain([rest], blocks), encoding, n_before, config)
            return
        held = rest
        for utf8, lines in groupby((text + newline).splitlines(keepends=True), key=is_utf8):
            part = b"".join(lines)
            n_utf8 += utf8
            codec = "utf-8" if utf8 else encoding
            yield from _transcode(name, iter([part]), codec, n_before, config)
            n_before += len(part)
    codec = "utf-8" if is_utf8(held) else encoding
    yield from _transcode(name, iter([held]), codec, n_before, config)
    if n_utf8:
        stats.warn(
            f"{name}: some lines are in UTF-8 and some in {encoding}: each is read as it is."
        )


def _transcode(
    name: str, blocks: Iterator[bytes], encoding: str, n_before: int, config: PrepareConfig
) -> Iterator[bytes]:
    """Yield in UTF-8 what is in ``encoding``, UNDECODED where it is not."""
    errors = "strict" if config.on_bad_bytes == "fail" else "replace"
    is_started = False
    for text in decode(name, blocks, encoding, errors, n_before):
        if text and not is_started:
            text = text.removeprefix("\ufeff")  # which utf-16-le, named as such, leaves in
            is_started = True
        utf8 = text.encode("utf-8", "replace")  # of surrogates, which utf-7 can write: "?"
        yield utf8 if errors == "strict" else utf8.replace(REPLACEMENT, UNDECODED)


def _detect_encoding(name: str, head: bytes) -> str:
    """Return the codec of a text by its first block that is not ASCII."""
    try:
        (head if len(head) < FIRST_BYTES else head[: utf8_prefix_len(head)]).decode()
        return "utf-8"
    except UnicodeDecodeError:
        decoded = head.decode("utf-8", "replace")
    n_bad = decoded.count("\ufffd") - head.count(REPLACEMENT)
    n_not_ascii = len(decoded) - len(head.translate(None, NOT_ASCII))
    if n_not_ascii - n_bad > n_bad:
        return "utf-8"  # damaged
    n_controls = len(head) - len(head.translate(None, CONTROLS))
    if n_controls > MAX_CONTROL_SHARE * len(head):
        raise UnreadableError(
            f"{name}: binary, not text: {n_controls:,} of {len(head):,} bytes are control "
            "characters. Name text files, or archives of them."
        )
    sample = b"\n".join(line for line in head.split(b"\n") if not line.isascii())
    return _legacy_codec(sample[:SAMPLE_BYTES]) or "utf-8"  # on_bad_bytes has to do


def _legacy_codec(sample: bytes) -> str:
    """Return a codec for ``sample``, which is not UTF-8, or "" where none is plausible.

    First, one in which it has no more than quotes, dashes and the like beside ASCII: no detector
    knows English from an office in Taiwan. Then chardet's best guess, or cp1252 where that is
    nearly as good: by far the most frequent of its kind, and the choice of web browsers.
    """
    for codec in TYPOGRAPHIC_CODECS:
        if {c for c in set(sample.decode(codec, "replace")) if not c.isascii()} <= TYPOGRAPHY:
            return codec
    import chardet  # here: only few files need it, and it takes 30 ms

    eras = chardet.EncodingEra.MODERN_WEB | chardet.EncodingEra.LEGACY_ISO
    scores = _scores(sample, eras)
    best = next(iter(scores), "")
    is_near = scores.get("cp1252", 0) >= NEAR_BEST * scores.get(best, 1)
    best = "cp1252" if is_near else best
    if scores.get(best, 0) < MIN_SCORE or C1_CONTROLS.search(sample.decode(best, "replace")):
        others = _scores(sample, chardet.EncodingEra.DOS)
        dos = next(iter(others), "")
        if others.get(dos, 0) > max(MIN_SCORE, scores.get(best, 0)):
            return dos
    return best


def _scores(sample: bytes, eras: Any) -> dict[str, float]:
    """Return chardet's codecs, by Python's names, each with its confidence, the best first."""
    import chardet

    guesses = chardet.detect_all(
        sample,
        max_bytes=len(sample),
        encoding_era=eras,
        ignore_threshold=True,
        compat_names=False,
    )
    scores: dict[str, float] = {}
    for guess in guesses:
        codec = guess["encoding"] or "utf-8"
        if not codec.startswith("utf"):
            # they differ in control characters only, which are no text
            scores.setdefault("cp1252" if codec == "iso8859-1" else codec, guess["confidence"])
    return scores
