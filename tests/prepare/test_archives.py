import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from common.errors import DataError
from prepare.archives import HEAD_BYTES, MAX_DEPTH, leaves
from tests.prepare.making import tar_of

ZSTD = zstandard.ZstdCompressor(write_checksum=True)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".zst": ZSTD.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}
TOOLS = {".xz": "xz", ".zst": "zstd", ".gz": "gzip", ".bz2": "bzip2"}
TEXT = b"Whole grain goes in, and flour comes out. " * 4
# Not to be compressed, and longer than what is looked at or handed on at a time.
LONG = random.Random(0).randbytes(3 * HEAD_BYTES + 17)

each_codec = pytest.mark.parametrize("suffix", COMPRESS)


def contents(name: str, raw: bytes) -> list[tuple[str, bytes]]:
    stream = io.BufferedReader(io.BytesIO(raw), 1 << 20)
    return [(leaf, content.read()) for leaf, content in leaves(name, stream)]


@each_codec
@pytest.mark.parametrize("content", [TEXT, b"", LONG], ids=["text", "empty", "long"])
def test_compressed_content_comes_out_as_it_went_in(suffix: str, content: bytes) -> None:
    assert contents("a.txt" + suffix, COMPRESS[suffix](content)) == [("a.txt", content)]


@each_codec
@pytest.mark.parametrize(
    "parts",
    [[b"one", b"two", b"three"], [b"", b"one", b"", b"two", b""], [LONG, TEXT, LONG]],
    ids=["short", "with empty ones", "long"],
)
def test_streams_joined_behind_one_another_are_all_read(suffix: str, parts: list[bytes]) -> None:
    joined = b"".join(map(COMPRESS[suffix], parts))
    assert contents("a" + suffix, joined) == [("a", b"".join(parts))]


@each_codec
def test_the_command_line_tools_write_what_is_read(suffix: str) -> None:
    if shutil.which(TOOLS[suffix]) is None:
        pytest.skip(f"{TOOLS[suffix]} is not installed")
    raw = subprocess.run([TOOLS[suffix], "-c"], input=LONG, stdout=subprocess.PIPE, check=True)
    assert contents("a" + suffix, raw.stdout) == [("a", LONG)]


@each_codec
@pytest.mark.parametrize("before", [b"", b"an earlier stream"], ids=["alone", "behind another"])
def test_a_cut_at_any_byte_is_an_error_that_says_where(suffix: str, before: bytes) -> None:
    earlier = COMPRESS[suffix](before) if before else b""
    whole = earlier + COMPRESS[suffix](TEXT)
    for cut in range(len(earlier) + 1, len(whole)):
        with pytest.raises(DataError, match=r"/there/a\.txt\.") as caught:
            contents("/there/a.txt" + suffix, whole[:cut])
        if cut - len(earlier) > 10:  # from where on the format is known
            assert f"cut short: the {TOOLS[suffix].removesuffix('2')}" in caught.value.message
            assert f"at byte {cut:,}," in caught.value.message


@each_codec
def test_no_flipped_bit_changes_the_text_unnoticed(suffix: str) -> None:
    whole = COMPRESS[suffix](TEXT)
    messages = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = contents("a" + suffix, bytes(damaged))
        except DataError as error:
            messages.append(error.message)
        else:
            assert found == [("a", TEXT)]  # a bit of no meaning, as in the time that gzip notes
    assert len(messages) > 4 * len(whole)
    assert all(message.startswith("a" + suffix) for message in messages)


@each_codec
def test_corruption_is_an_error_that_says_where(suffix: str) -> None:
    whole = bytearray(COMPRESS[suffix](LONG))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"a\.\w+: corrupt \w+ data before byte [\d,]+ \("):
        contents("a" + suffix, bytes(whole))


@each_codec
@pytest.mark.parametrize("rest", [b"x", b"something that is no archive", LONG])
def test_what_follows_the_data_is_an_error_not_a_silent_end(suffix: str, rest: bytes) -> None:
    whole = COMPRESS[suffix](TEXT)
    with pytest.raises(DataError, match=f"at byte {len(whole):,}, something else follows"):
        contents("a" + suffix, whole + rest)


@pytest.mark.parametrize("n_zeros", [4, 8, 2 * HEAD_BYTES])
def test_xz_padding_between_and_after_streams_is_skipped(n_zeros: int) -> None:
    padding = b"\0" * n_zeros
    joined = lzma.compress(b"one ") + padding + lzma.compress(b"two") + padding
    assert contents("a.xz", joined) == [("a", b"one two")]


@pytest.mark.parametrize("n_zeros", [1, 2, 3, 5, 2 * HEAD_BYTES + 1])
def test_xz_padding_of_another_length_is_an_error(n_zeros: int) -> None:
    joined = lzma.compress(b"one ") + b"\0" * n_zeros + lzma.compress(b"two")
    with pytest.raises(DataError, match=f"a.xz: {n_zeros} zero bytes after xz data"):
        contents("a.xz", joined)


def test_gzip_from_a_tape_may_end_in_zeros() -> None:
    assert contents("a.gz", gzip.compress(TEXT) + b"\0" * 700) == [("a", TEXT)]


@pytest.mark.parametrize("magic", range(0x184D2A50, 0x184D2A60))
def test_skippable_zstd_frames_are_skipped_wherever_they_stand(magic: int) -> None:
    skippable = struct.pack("<II", magic, 5) + b"notes"
    one, two = ZSTD.compress(b"one "), ZSTD.compress(b"two")
    assert contents("a.zst", skippable + one + skippable + skippable + two + skippable) == [
        ("a", b"one two")
    ]


def long_window_frame(content: bytes) -> bytes:
    """Write a zstd frame with a window of 2 GiB, as ``zstd --long=31`` does. Source: RFC 8878."""
    no_size_no_checksum, window = 0x00, (31 - 10) << 3
    last_raw_block = (len(content) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([no_size_no_checksum, window]) + last_raw_block + content


def test_zstd_with_the_longest_window_is_read() -> None:
    with pytest.raises(zstandard.ZstdError, match="memory"):  # so the frame is what it should be
        zstandard.ZstdDecompressor().decompressobj().decompress(long_window_frame(TEXT))
    assert contents("a.zst", long_window_frame(TEXT)) == [("a", TEXT)]


@each_codec
def test_content_decides_not_the_name(suffix: str) -> None:
    assert contents("notes.txt", COMPRESS[suffix](TEXT)) == [("notes.txt", TEXT)]


@pytest.mark.parametrize("suffix", [*COMPRESS, ".tar"])
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"], ids=["empty", "html"])
def test_a_name_that_promises_an_archive_is_held_to_it(suffix: str, content: bytes) -> None:
    with pytest.raises(DataError, match=f"/there/a{suffix}: named as .* but the content is no"):
        contents("/there/a" + suffix, content)


def test_openwebtext_nests_tars_of_xz_of_tars() -> None:
    inner = [
        lzma.compress(tar_of({f"{i}-{j}.txt": f"text {i} {j}".encode() for j in range(2)}))
        for i in range(2)
    ]
    outer = tar_of({f"openwebtext/urlsf_{i}_data.xz": raw for i, raw in enumerate(inner)})
    assert contents("openwebtext.tar.xz", lzma.compress(outer)) == [
        (f"openwebtext.tar/openwebtext/urlsf_{i}_data/{i}-{j}.txt", f"text {i} {j}".encode())
        for i in range(2)
        for j in range(2)
    ]


def test_tars_joined_behind_one_another_are_all_read() -> None:
    joined = tar_of({"a": b"one"}) + tar_of({"b": b"two", "c": LONG}) + tar_of({"d": b"four"})
    assert contents("x.tar", joined) == [
        ("x.tar/a", b"one"),
        ("x.tar/b", b"two"),
        ("x.tar/c", LONG),
        ("x.tar/d", b"four"),
    ]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_kind_of_tar_is_read(tar_format: int, tmp_path: Path) -> None:
    name = "folder/" * (12 if tar_format == tarfile.USTAR_FORMAT else 40) + "ä.txt"
    (tmp_path / "file").write_bytes(TEXT)
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format, encoding="utf-8") as tar:
        tar.add(tmp_path / "file", name)
    assert contents("x.tar", (tmp_path / "x.tar").read_bytes()) == [(f"x.tar/{name}", TEXT)]


def test_a_tar_without_magic_is_known_by_its_checksum() -> None:
    raw = bytearray(tar_of({"a": b"one"}))
    raw[257:265] = bytes(8)  # Unix v7 had nothing there
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    assert contents("x", bytes(raw)) == [("x/a", b"one")]


@pytest.mark.parametrize("position", [0, 100, 150, 156, 257])
def test_a_damaged_later_header_is_an_error_not_a_silent_end(position: int) -> None:
    raw = bytearray(tar_of({"a": b"one", "b": b"two", "c": b"three"}))
    raw[1024 + position] ^= 0x15
    with pytest.raises(DataError, match=r"^x\.tar: damaged or cut short tar \(bad header at byte"):
        contents("x.tar", bytes(raw))


@pytest.mark.parametrize("cut", [513, 600, 1023, 1025, 1535, 1537, 1540])
def test_a_tar_cut_inside_a_member_is_an_error(cut: int) -> None:
    raw = tar_of({"a": b"a" * 300, "b": b"b" * 300})[:cut]
    with pytest.raises(DataError, match=r"^x\.tar.*cut short"):
        contents("x.tar", raw)


def test_only_regular_files_of_a_tar_are_read_and_nothing_is_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"not to be read")
    monkeypatch.chdir(tmp_path)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link")
            link.type, link.linkname = kind, str(tmp_path / "secret")
            tar.addfile(link)
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            special = tarfile.TarInfo("special")
            special.type = kind
            tar.addfile(special)
        for name in ("/tmp/absolute.txt", "../above.txt"):
            file = tarfile.TarInfo(name)
            file.size = 4
            tar.addfile(file, io.BytesIO(b"text"))
    assert contents("x.tar", raw.getvalue()) == [
        ("x.tar//tmp/absolute.txt", b"text"),
        ("x.tar/../above.txt", b"text"),
    ]
    assert os.listdir(tmp_path) == ["secret"]


def test_names_that_are_no_utf8_are_made_text() -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café"))
    assert contents("x.tar", raw.getvalue()) == [("x.tar/caf\N{REPLACEMENT CHARACTER}", b"")]


@pytest.mark.parametrize("wrap", [gzip.compress, lambda raw: tar_of({"a": raw})], ids=["gz", "tar"])
def test_layers_inside_layers_end_at_a_limit(wrap: Callable[[bytes], bytes]) -> None:
    raw = TEXT
    for _ in range(MAX_DEPTH):
        raw = wrap(raw)
    assert [content for _, content in contents("x", raw)] == [TEXT]
    with pytest.raises(DataError, match="more than 8 layers of archives"):
        contents("x", wrap(raw))


@pytest.mark.parametrize("n_zeros", [100, 512, 10_240])
def test_zeros_are_no_tar(n_zeros: int) -> None:
    assert contents("x", b"\0" * n_zeros) == [("x", b"\0" * n_zeros)]
