import bz2
import gzip
import io
import lzma
import random
import re
import shutil
import struct
import subprocess
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import zstandard

from common.errors import DataError
from prepare.archives import codecs as compression
from prepare.archives.codecs import (
    BLOCK_BYTES,
    DECODERS,
    READ_BYTES,
    ZSTD_BLOCK_BYTES,
    decompress,
)
from prepare.archives.streams import FREE_BYTES, ExpansionLimit, archive_kind, stream_of

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
}
TEXT = b"Whole grain goes in, and flour comes out. " * 4
LONG = random.Random(0).randbytes(3 * (64 << 10) + 17)  # not to be compressed
MIXED = b"".join(  # of every kind of zstd block
    random.Random(i).randbytes(150_000) + TEXT * 5_000 + bytes(400_000) for i in range(2)
)

each_codec = pytest.mark.parametrize("kind", DECODERS)
# LZMA alone has no checksum, and is known by its 13 bytes of header only
each_checked_codec = pytest.mark.parametrize("kind", sorted(DECODERS.keys() - {"lzma"}))


def unlimited() -> ExpansionLimit:
    return ExpansionLimit(float("inf"), lambda: 0)


def chunks_of(kind: str, raw: bytes, limit: ExpansionLimit | None = None) -> Iterator[bytes]:
    stream = io.BufferedReader(io.BytesIO(raw))
    return decompress("a.txt", stream, kind, limit or unlimited())


def unpacked(kind: str, raw: bytes) -> bytes:
    return b"".join(chunks_of(kind, raw))


@each_codec
@pytest.mark.parametrize(
    "content", [TEXT, b"", LONG, MIXED], ids=["text", "empty", "long", "mixed"]
)
def test_compressed_content_comes_out_as_it_went_in(kind: str, content: bytes) -> None:
    assert archive_kind("a", COMPRESS[kind](content)) == kind
    assert unpacked(kind, COMPRESS[kind](content)) == content


@each_codec
@pytest.mark.parametrize(
    "parts",
    [[b"one", b"two", b"three"], [b"", b"one", b"", b"two", b""], [LONG, TEXT, LONG]],
    ids=["short", "with empty ones", "long"],
)
def test_streams_joined_behind_one_another_are_all_read(kind: str, parts: list[bytes]) -> None:
    assert unpacked(kind, b"".join(map(COMPRESS[kind], parts))) == b"".join(parts)


@each_codec
def test_hundreds_of_short_streams_are_all_read(kind: str) -> None:
    numbers = [b"%d " % i for i in range(800)]
    assert unpacked(kind, b"".join(map(COMPRESS[kind], numbers))) == b"".join(numbers)


@each_codec
@pytest.mark.parametrize("n_bytes", [1, 2, 3, 5, 7, 11, 64, 1000])
def test_it_does_not_matter_where_reads_cut_the_data(
    kind: str, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "READ_BYTES", n_bytes)
    monkeypatch.setattr(compression, "FIRST_FEED_BYTES", n_bytes)
    parts = [b"", TEXT, b"", LONG[:3_000], bytes(300_000), TEXT * 100]
    between = {"xz": bytes(8), "gzip": bytes(3), "zstd": b"\x5a\x2a\x4d\x18\x2c\1\0\0" + b"n" * 300}
    joined = between.get(kind, b"").join(map(COMPRESS[kind], parts))
    assert unpacked(kind, joined) == b"".join(parts)
    with pytest.raises(DataError, match="cut short"):
        unpacked(kind, joined[:-1])


@each_codec
@pytest.mark.parametrize("max_bytes", [ZSTD_BLOCK_BYTES, 3 * ZSTD_BLOCK_BYTES + 1])
def test_it_does_not_matter_how_much_is_given_out_at_a_time(
    kind: str, max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "BLOCK_BYTES", max_bytes)
    chunks = list(chunks_of(kind, COMPRESS[kind](MIXED)))
    assert max(map(len, chunks)) <= max_bytes
    assert b"".join(chunks) == MIXED


TOOLS = [
    *(("xz", ["xz", *options]) for options in ([], ["-0", "--check=none"], ["--block-size=9999"])),
    *(("gzip", ["gzip", *options]) for options in ([], ["-1"])),
    *(("bzip2", ["bzip2", *options]) for options in ([], ["-1"])),
    *(
        ("zstd", ["zstd", *options])
        for options in ([], ["-19"], ["--fast=5"], ["--no-check"], ["--long=31"], ["-B9999", "-T2"])
    ),
]


@pytest.mark.parametrize(("kind", "command"), TOOLS, ids=[" ".join(args) for _, args in TOOLS])
def test_the_command_line_tools_write_what_is_read(kind: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    made = subprocess.run([*command, "-c"], input=MIXED, capture_output=True, check=True)
    assert unpacked(kind, made.stdout) == MIXED


@each_checked_codec
@pytest.mark.parametrize("before", [b"", b"an earlier stream"], ids=["alone", "behind another"])
def test_a_cut_at_any_byte_is_an_error_that_says_where(kind: str, before: bytes) -> None:
    earlier = COMPRESS[kind](before) if before else b""
    whole = earlier + COMPRESS[kind](TEXT)
    for cut in range(len(earlier) + 1, len(whole)):
        with pytest.raises(DataError, match=r"^a\.txt: ") as caught:
            unpacked(kind, whole[:cut])
        if cut - len(earlier) > 10:  # from where on the format is known
            assert f"cut short: the {kind} data stops at byte {cut:,}," in caught.value.message


@each_checked_codec
def test_no_flipped_bit_changes_the_text_unnoticed(kind: str) -> None:
    whole = COMPRESS[kind](TEXT)
    messages = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = unpacked(kind, bytes(damaged))
        except DataError as error:
            messages.append(error.message)
        else:
            assert found == TEXT  # a bit of no meaning, as in the time that gzip notes
    assert len(messages) > 4 * len(whole)
    assert all(message.startswith("a.txt: ") for message in messages)


@each_codec
def test_corruption_is_an_error_that_says_where_and_keeps_its_cause(kind: str) -> None:
    whole = bytearray(COMPRESS[kind](LONG))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(DataError, match=rf"corrupt {kind} data before byte [\d,]+ \(") as caught:
        unpacked(kind, bytes(whole))
    assert isinstance(caught.value.__cause__, compression.DECODER_ERRORS)


@each_codec
@pytest.mark.parametrize("rest", [b"x", b"something that is no archive", LONG])
def test_what_follows_the_data_is_an_error_not_a_silent_end(kind: str, rest: bytes) -> None:
    whole = COMPRESS[kind](TEXT)
    with pytest.raises(DataError, match=f"at byte {len(whole):,}, something else follows"):
        unpacked(kind, whole + rest)


@pytest.mark.parametrize("n_zeros", [4, 8, READ_BYTES, 2 * READ_BYTES + 4])
def test_xz_padding_between_and_after_streams_is_skipped(n_zeros: int) -> None:
    padding = bytes(n_zeros)
    joined = lzma.compress(b"one ") + padding + lzma.compress(b"two") + padding
    assert unpacked("xz", joined) == b"one two"


@pytest.mark.parametrize("n_zeros", [1, 2, 3, 5, READ_BYTES + 1])
@pytest.mark.parametrize("after", [b"", lzma.compress(b"two")], ids=["at the end", "between"])
def test_xz_padding_of_another_length_is_an_error(n_zeros: int, after: bytes) -> None:
    with pytest.raises(DataError, match=f"a.txt: {n_zeros:,} zero bytes after xz data"):
        unpacked("xz", lzma.compress(b"one ") + bytes(n_zeros) + after)


def test_gzip_from_a_tape_may_end_in_zeros() -> None:
    assert unpacked("gzip", gzip.compress(TEXT) + bytes(700)) == TEXT


@pytest.mark.parametrize("kind", ["zstd", "bzip2"])
def test_zeros_after_zstd_and_bzip2_are_something_else(kind: str) -> None:
    with pytest.raises(DataError, match="something else follows"):
        unpacked(kind, COMPRESS[kind](TEXT) + bytes(4))


@pytest.mark.parametrize("magic", range(0x184D2A50, 0x184D2A60))
@pytest.mark.parametrize("size", [0, 5, 3 * READ_BYTES])
def test_skippable_zstd_frames_are_skipped_wherever_they_stand(magic: int, size: int) -> None:
    skippable = struct.pack("<II", magic, size) + b"n" * size
    one, two = COMPRESS["zstd"](b"one "), COMPRESS["zstd"](b"two")
    assert unpacked("zstd", skippable + one + skippable * 2 + two + skippable) == b"one two"
    with pytest.raises(DataError, match="cut short"):
        unpacked("zstd", one + skippable[:-1])


def frame(*blocks: tuple[int, bytes, int], checksum: bytes = b"") -> bytes:
    """Write a zstd frame of (kind, body, size) with a window of 2 GiB. Source: RFC 8878."""
    flags, window = 0x04 if checksum else 0x00, (31 - 10) << 3
    raw = b"\x28\xb5\x2f\xfd" + bytes([flags, window])
    for i, (kind, body, size) in enumerate(blocks):
        is_last = i == len(blocks) - 1
        raw += (size << 3 | kind << 1 | is_last).to_bytes(3, "little") + body
    return raw + checksum


RAW, REPEATED, RESERVED = 0, 1, 3


def test_zstd_with_the_longest_window_is_read() -> None:
    long = frame((RAW, TEXT, len(TEXT)))
    with pytest.raises(zstandard.ZstdError, match="memory"):  # so the frame is what it should be
        zstandard.ZstdDecompressor().decompressobj().decompress(long)
    assert unpacked("zstd", long) == TEXT


@pytest.mark.parametrize("level", [-5, 1, 3, 19])
@pytest.mark.parametrize("write_checksum", [False, True])
@pytest.mark.parametrize("write_content_size", [False, True])
def test_zstd_frames_of_every_kind_are_read(
    level: int, write_checksum: bool, write_content_size: bool
) -> None:
    compressor = zstandard.ZstdCompressor(
        level=level, write_checksum=write_checksum, write_content_size=write_content_size
    )
    for content in (MIXED, TEXT, b"", bytes(ZSTD_BLOCK_BYTES), LONG[:ZSTD_BLOCK_BYTES]):
        assert unpacked("zstd", compressor.compress(content)) == content
    piecewise = compressor.compressobj()
    raw = b"".join(
        piecewise.compress(MIXED[i : i + 777]) + piecewise.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for i in range(0, 100_000, 777)
    )
    assert unpacked("zstd", raw + piecewise.flush()) == MIXED[: 129 * 777]


@pytest.mark.parametrize(
    "raw",
    [
        frame((RESERVED, b"", 0)),
        frame((RAW, bytes(ZSTD_BLOCK_BYTES + 1), ZSTD_BLOCK_BYTES + 1)),
        frame((REPEATED, b"x", ZSTD_BLOCK_BYTES + 1)),
        frame((RAW, TEXT, len(TEXT)), checksum=b"four"),
    ],
    ids=["reserved block", "long block", "long repeated block", "wrong checksum"],
)
def test_zstd_frames_against_the_rules_are_errors(raw: bytes) -> None:
    with pytest.raises(DataError, match="corrupt zstd data"):
        unpacked("zstd", raw)


def test_zstd_made_with_a_dictionary_is_an_error() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"document %d of many: %s" % (i, TEXT[: i % 60]) for i in range(2_000)
    ]
    dictionary = zstandard.train_dictionary(2_000, samples)
    raw = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    with pytest.raises(DataError, match=r"corrupt zstd data.*[Dd]ictionary"):
        unpacked("zstd", raw)


N_ZEROS = 96 << 20
HOSTILE = {
    "xz": lambda: lzma.compress(bytes(N_ZEROS), preset=0),
    "lzma": lambda: lzma.compress(bytes(N_ZEROS), lzma.FORMAT_ALONE, preset=0),
    "zstd": lambda: frame(*[(REPEATED, b"\0", ZSTD_BLOCK_BYTES)] * (N_ZEROS // ZSTD_BLOCK_BYTES)),
    "gzip": lambda: gzip.compress(bytes(N_ZEROS), 1),
    "bzip2": lambda: bz2.compress(bytes(N_ZEROS // 8), 9) * 8,
}


@each_codec
def test_what_expands_a_thousandfold_comes_out_in_bounded_chunks(kind: str) -> None:
    raw = HOSTILE[kind]()
    assert len(raw) < N_ZEROS / 200
    tracemalloc.start()
    try:
        n_out = 0
        for chunk in chunks_of(kind, raw):
            assert len(chunk) <= BLOCK_BYTES
            assert not chunk.strip(b"\0")
            n_out += len(chunk)
        assert tracemalloc.get_traced_memory()[1] < 5 * BLOCK_BYTES
    finally:
        tracemalloc.stop()
    assert n_out == N_ZEROS


@each_codec
def test_expanding_beyond_the_ratio_is_refused_with_the_numbers(kind: str) -> None:
    raw = HOSTILE[kind]()
    limit = ExpansionLimit(100, lambda: len(raw))
    with pytest.raises(DataError) as caught:
        deque(chunks_of(kind, raw, limit), maxlen=0)
    assert 0 < limit.n_out - max(FREE_BYTES, 100 * len(raw)) <= BLOCK_BYTES
    assert f"bytes from {len(raw):,} read" in caught.value.message
    assert "--max-ratio is 100: raise it if the file is to be trusted" in caught.value.message
    assert sum(map(len, chunks_of(kind, raw, ExpansionLimit(1e6, lambda: len(raw))))) == N_ZEROS


def test_a_budget_adds_up_all_that_is_spent_beyond_what_is_free() -> None:
    limit = ExpansionLimit(1_000, lambda: 8_192)
    limit.add("a", FREE_BYTES)
    with pytest.raises(DataError) as caught:
        limit.add("b/c", 1)
    assert caught.value.message == (
        "b/c: expands to 67,108,865 bytes from 8,192 read, 8,192 times as many. --max-ratio is "
        "1,000: raise it if the file is to be trusted."
    )


def test_a_budget_grows_with_what_is_read() -> None:
    n_read = 0
    limit = ExpansionLimit(10, lambda: n_read)
    for _ in range(100):
        n_read += 1 << 20
        limit.add("a", 10 << 20)
    with pytest.raises(DataError, match=r"expands to 1,048,576,001 bytes from 104,857,600 read"):
        limit.add("a", 1)


def test_a_budget_of_a_source_of_which_nothing_was_read_divides_by_nothing() -> None:
    with pytest.raises(DataError, match="from 1 read"):
        ExpansionLimit(1_000, lambda: 0).add("a", FREE_BYTES + 1)


@pytest.mark.parametrize("max_bytes", [1, 2, 100, 257, 258, 259, 1000])
def test_what_gzip_holds_back_when_the_input_is_used_up_is_not_lost(
    max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "BLOCK_BYTES", max_bytes)
    for content in (bytes(21), bytes(259), bytes(5_000), TEXT * 10):
        assert unpacked("gzip", gzip.compress(content) * 2) == content * 2


@pytest.mark.parametrize("n_bytes", [1, 5, 4096, 1 << 22])
def test_a_stream_of_chunks_reads_as_the_whole(n_bytes: int) -> None:
    chunks = [LONG[i : i + 10_007] for i in range(0, len(LONG), 10_007)]
    stream = stream_of(iter(chunks), 64)
    assert b"".join(iter(lambda: stream.read(n_bytes), b"")) == LONG
    assert not stream.seekable()


@pytest.mark.parametrize("preset", range(10))
@pytest.mark.parametrize("size", [0, 5, 30_000])
def test_lzma_alone_is_read_and_a_cut_one_is_an_error(preset: int, size: int) -> None:
    text = b"some text " * size
    packed = lzma.compress(text, lzma.FORMAT_ALONE, preset=preset)
    # with the size of its content in the place of "unknown", as other programs write it
    for raw in (packed, packed[:5] + len(text).to_bytes(8, "little") + packed[13:]):
        assert unpacked("lzma", raw) == text
        assert archive_kind("a.lzma", raw) == "lzma"
    if size:
        with pytest.raises(DataError, match=r"cut short|corrupt"):
            unpacked("lzma", packed[:-9])


@pytest.mark.parametrize("name", ["big.tar.xz.001", "big.zip.02", "dir/big.jsonl.zst.aa"])
def test_a_part_of_a_split_archive_is_a_sentence_that_joins_them(name: str) -> None:
    base = name.rpartition(".")[0]
    with pytest.raises(DataError, match=re.escape(f"cat {base}.* | python -m prepare text -")):
        archive_kind(name, b"whatever")
