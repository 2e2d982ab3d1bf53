import bz2
import gzip
import io
import itertools
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import zstandard

from common.errors import DataError
from prepare.archives.streams import FREE_BYTES, HEAD_BYTES, ExpansionLimit, Stream
from prepare.chunks import Stats, UnreadableError
from prepare.readers.documents import MAX_DEPTH, iter_files
from tests.prepare.making import tar_of

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}
TEXT = b"Whole grain goes in, and flour comes out. " * 4
# Not to be compressed, and longer than what is looked at or handed on at a time.
LONG = random.Random(0).randbytes(3 * HEAD_BYTES + 17)

each_codec = pytest.mark.parametrize("suffix", COMPRESS)


def streams(
    name: str, raw: bytes, *, stats: Stats | None = None, max_ratio: float = 1e9
) -> Iterator[tuple[str, Stream]]:
    stream = io.BufferedReader(io.BytesIO(raw), 1 << 20)
    return iter_files(name, stream, ExpansionLimit(max_ratio, lambda: len(raw)), stats or Stats())


def contents(
    name: str, raw: bytes, *, stats: Stats | None = None, max_ratio: float = 1e9
) -> list[tuple[str, bytes]]:
    found = streams(name, raw, stats=stats, max_ratio=max_ratio)
    return [(leaf, content.read()) for leaf, content in found]


# --- layers -----------------------------------------------------------------------------------


@each_codec
def test_a_compressed_file_is_one_leaf_without_its_suffix(suffix: str) -> None:
    assert contents("a.txt" + suffix, COMPRESS[suffix](LONG)) == [("a.txt", LONG)]


@each_codec
def test_a_cut_at_any_byte_is_an_error(suffix: str) -> None:
    whole = COMPRESS[suffix](tar_of({"a": TEXT, "b": LONG[:100]}))
    for cut in range(len(whole)):
        with pytest.raises(DataError, match=r"^/there/a\.tar\."):
            contents("/there/a.tar" + suffix, whole[:cut])


@each_codec
def test_content_decides_not_the_name(suffix: str) -> None:
    assert contents("notes.txt", COMPRESS[suffix](TEXT)) == [("notes.txt", TEXT)]
    assert contents("notes.xz", COMPRESS[suffix](TEXT)) == [("notes", TEXT)]


@pytest.mark.parametrize("suffix", [*COMPRESS, ".tar", ".zip", ".7z"])
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"], ids=["empty", "html"])
def test_a_name_that_promises_an_archive_is_held_to_it(suffix: str, content: bytes) -> None:
    with pytest.raises(DataError, match=f"/there/a{suffix}: named as .* but the content is no"):
        contents("/there/a" + suffix, content)


@pytest.mark.parametrize(
    ("raw", "advice"),
    [
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z is not supported: unpack it with '7z x'"),
        (b"Rar!\x1a\x07\x00", "rar is not supported: unpack it with 'unrar x'"),
        (b"Rar!\x1a\x07\x01\x00", "rar is not supported"),
        (b"\x04\x22\x4d\x18\x64\x40", "lz4 is not supported: unpack it with 'lz4 -d'"),
        (b"LZIP\x01\x0c", "lzip is not supported: unpack it with 'lzip -d'"),
        (b"\x1f\x9d\x90", "compress is not supported: unpack it with 'gzip -d'"),
    ],
)
def test_other_archives_are_named_with_what_unpacks_them(raw: bytes, advice: str) -> None:
    for name, content in [("x", raw), ("x.txt.gz", gzip.compress(raw)), ("x", tar_of({"a": raw}))]:
        with pytest.raises(DataError, match=advice + ".*" if advice[-1] == "'" else advice):
            contents(name, content)


def test_openwebtext_nests_tars_of_xz_of_tars() -> None:
    inner = [
        lzma.compress(tar_of({f"{i}-{j}.txt": f"text {i} {j}".encode() for j in range(2)}))
        for i in range(2)
    ]
    outer = tar_of({f"openwebtext/urlsf_{i}_data.xz": raw for i, raw in enumerate(inner)})
    expected = [
        (f"openwebtext.tar/openwebtext/urlsf_{i}_data/{i}-{j}.txt", f"text {i} {j}".encode())
        for i in range(2)
        for j in range(2)
    ]
    assert contents("openwebtext.tar.xz", lzma.compress(outer)) == expected
    assert contents("openwebtext.tar", outer) == expected


def zipped(raw: bytes) -> bytes:
    return zip_of({"a": raw})


def tarred(raw: bytes) -> bytes:
    return tar_of({"a": raw})


@pytest.mark.parametrize("wrap", [gzip.compress, tarred, zipped], ids=["gz", "tar", "zip"])
def test_layers_inside_layers_end_at_a_limit(wrap: Callable[[bytes], bytes]) -> None:
    raw = TEXT
    for _ in range(MAX_DEPTH):
        raw = wrap(raw)
    assert [content for _, content in contents("x", raw)] == [TEXT]
    with pytest.raises(DataError, match="more than 8 layers of archives"):
        contents("x", wrap(raw))


@pytest.mark.parametrize("size", [0, 1, 5_000, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 200_000])
@pytest.mark.parametrize(
    "wrap", [lambda raw: raw, gzip.compress, tarred, zipped], ids=["plain", "gz", "tar", "zip"]
)
def test_the_beginning_of_a_leaf_can_be_looked_at(
    size: int, wrap: Callable[[bytes], bytes]
) -> None:
    content = random.Random(1).randbytes(size)
    [(_, stream)] = [
        (name, (leaf.peek(HEAD_BYTES)[:HEAD_BYTES], leaf.read()))
        for name, leaf in streams("x", wrap(content))
    ]
    assert stream == (content[:HEAD_BYTES], content)


@pytest.mark.parametrize("n_read", [0, 1, 70_000])
@pytest.mark.parametrize("of", [tar_of, lambda members: zip_of(members)], ids=["tar", "zip"])
def test_what_is_left_unread_of_one_member_does_not_reach_the_next(
    n_read: int, of: Callable[[dict[str, bytes]], bytes]
) -> None:
    raw = of({"a": LONG, "b": gzip.compress(LONG), "c": TEXT, "d": LONG, "e": b"end"})
    found = [leaf.read(n_read) for _, leaf in streams("x", raw)]
    assert found == [content[:n_read] for content in (LONG, LONG, TEXT, LONG, b"end")]


def test_a_long_member_is_read_in_flat_memory() -> None:
    raw = tar_of({"a": bytes(64 << 20)})
    for whole in (raw, gzip.compress(raw, 1)):
        tracemalloc.start()
        for _, leaf in streams("x", whole):
            while leaf.read(1 << 20):
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 48 << 20  # which is what may be decompressed ahead, and then some


def test_the_layers_of_a_source_share_one_budget() -> None:
    inner = gzip.compress(bytes(FREE_BYTES // 2), 1)
    raw = zip_of({"a.gz": inner, "b.gz": inner, "c.gz": inner}, zipfile.ZIP_STORED)
    assert len(contents("x.zip", raw, max_ratio=1_000)) == 3
    with pytest.raises(DataError, match=r"x\.zip/c\.gz: expands to [\d,]+ bytes from [\d,]+ read"):
        contents("x.zip", raw, max_ratio=50)


# --- tar --------------------------------------------------------------------------------------


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
        tar.add(tmp_path / "file", "short")
    assert contents("x.tar", (tmp_path / "x.tar").read_bytes()) == [
        (f"x.tar/{name}", TEXT),
        ("x.tar/short", TEXT),
    ]


@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_the_tar_tool_writes_is_read(tar_format: str, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    members = {"a": TEXT, "b": b"", "c" * 90: LONG}
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    command = ["tar", f"--format={tar_format}", "-cf", "-", *members]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    stats = Stats()
    assert dict(contents("x", made.stdout, stats=stats)) == {
        f"x/{name}": content for name, content in members.items()
    }
    assert stats.warnings == []


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=["gnu", "0.0", "0.1", "1.0"],
)
def test_sparse_files_are_refused_in_a_sentence_and_what_follows_is_read(
    options: list[str], tmp_path: Path
) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    with open(tmp_path / "holes", "wb") as file:
        for i in range(1, 30):
            file.seek(i * 100_000)
            file.write(b"text %d" % i)
        file.truncate(4_000_000)
    (tmp_path / "next").write_bytes(TEXT)
    command = ["tar", "-S", *options, "-cf", "-", "holes", "next"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    if len(made.stdout) > 1_000_000:
        pytest.skip("the file system here keeps no holes")
    found = streams("x", made.stdout)
    name, leaf = next(found)
    assert name == "x/holes"
    with pytest.raises(DataError, match=r"^x/holes: stored as a sparse file.*unpack the tar with"):
        leaf.read()
    assert [(name, leaf.read()) for name, leaf in found] == [("x/next", TEXT)]


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def test_a_tar_without_magic_is_known_by_its_checksum() -> None:
    raw = tar_of({"a": b"one"})
    v7 = with_checksum(raw[:257] + bytes(8) + raw[265:512])  # Unix v7 had nothing there
    assert contents("x", v7 + raw[512:]) == [("x/a", b"one")]


@pytest.mark.parametrize("position", [0, 100, 150, 156, 257])
def test_a_damaged_later_header_is_an_error_not_a_silent_end(position: int) -> None:
    raw = bytearray(tar_of({"a": b"one", "b": b"two", "c": b"three"}))
    raw[1024 + position] ^= 0x15
    with pytest.raises(DataError, match=r"^x\.tar: damaged or cut short tar \(bad header at byte"):
        contents("x.tar", bytes(raw))


MEMBERS = {"a": b"a" * 300, "b": b"b" * 300, "c": LONG}


def test_a_cut_at_any_byte_of_a_tar_is_an_error_or_at_least_warned_of() -> None:
    whole = tar_of(MEMBERS)
    end = 2 * 1024 + 512 + len(LONG) + -len(LONG) % 512
    between = [1024, 2048, end, end + 512]  # after a member, or one of the two blocks of the end
    near = {n + d for n in between for d in range(-4, 5)}
    for cut in sorted({*range(513, 3_000, 7), *near}):
        stats = Stats()
        if cut not in between:
            with pytest.raises(DataError, match=r"^x\.tar.*cut short"):
                contents("x.tar", whole[:cut], stats=stats)
            continue
        found = contents("x.tar", whole[:cut], stats=stats)
        assert found == [(f"x.tar/{name}", MEMBERS[name]) for name in "abc"[: len(found)]]
        assert len(found) == min(3, 1 + between.index(cut))
        [warning] = stats.warnings
        assert warning.startswith("x.tar: ends without a tar's end mark: members may be missing")


def test_the_end_mark_of_an_earlier_tar_does_not_stand_for_the_last_one() -> None:
    stats = Stats()
    contents("x.tar", tar_of({"a": b"one"}) + tar_of({"b": b"two"})[:1024], stats=stats)
    assert len(stats.warnings) == 1


def test_a_long_member_that_is_cut_short_says_so_itself() -> None:
    _, leaf = next(streams("x.tar", tar_of({"a": LONG})[:100_000]))
    assert leaf.read(99_000) == LONG[:99_000]
    with pytest.raises(
        DataError, match=r"^x\.tar/a: cut short inside its archive, 97,137 bytes be"
    ):
        leaf.read()


def test_headers_of_a_tar_are_forgotten() -> None:
    raw = tar_of({str(i): b"" for i in range(3_000)})
    found = streams("x.tar", raw)
    next(found)
    tracemalloc.start()
    for _ in range(2_998):
        next(found)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 300_000  # some 500 bytes a header, were they kept, are five times that


@pytest.mark.parametrize("n_zeros", [1024, 1536, 10_240, 1 << 20])
def test_a_tar_with_its_end_mark_is_not_warned_of(n_zeros: int) -> None:
    whole = tar_of(MEMBERS).rstrip(b"\0")
    stats = Stats()
    contents("x.tar", whole + bytes(-len(whole) % 512 + n_zeros), stats=stats)
    assert stats.warnings == []


# What pixz writes behind the tar that it compressed. Source: pixz, src/pixz.h
PIXZ_INDEX = bytes.fromhex("a64c322ed614aedb") + b"".join(
    b"member %d\0" % i + struct.pack("<Q", i) for i in range(9)
)


@pytest.mark.parametrize("rest", [b"x", b"some text", LONG, PIXZ_INDEX, b"x" * 512 + PIXZ_INDEX])
def test_anything_else_after_a_tar_is_an_error(rest: bytes) -> None:
    with pytest.raises(DataError, match=r"^x\.tar: damaged or cut short tar \(bad header at byte"):
        contents("x.tar", tar_of({"a": TEXT}) + rest)


LEFT_OUT = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
}


def tar_of_headers(*headers: tarfile.TarInfo, content: bytes = b"") -> bytes:
    raw = b"".join(header.tobuf(tarfile.GNU_FORMAT) for header in headers)
    return raw + content + bytes(-len(content) % 512 + 1024)


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_only_regular_files_of_a_tar_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"not to be read")
    monkeypatch.chdir(tmp_path)
    special, file = tarfile.TarInfo("special"), tarfile.TarInfo("file")
    special.type, special.linkname = LEFT_OUT[kind], str(tmp_path / "secret")
    file.size = 4
    stats = Stats()
    raw = tar_of_headers(special, file, content=b"text")
    assert contents("x.tar", raw, stats=stats) == [("x.tar/file", b"text")]
    assert stats == Stats()
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("name", ["/tmp/absolute.txt", "../above.txt", "a/../../b", "C:\\con"])
def test_names_that_lead_elsewhere_are_only_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for of in (tar_of, zip_of):
        assert contents("x", of({name: b"text"})) == [(f"x/{name}", b"text")]
    assert os.listdir(tmp_path) == []


def test_members_of_an_unknown_kind_are_left_out_and_listed() -> None:
    part, file = tarfile.TarInfo("part"), tarfile.TarInfo("file")
    part.type, part.size, file.size = b"M", 512, 4  # goes on from another volume
    raw = part.tobuf() + b"p" * 512 + tar_of_headers(file, content=b"text")
    stats = Stats()
    assert contents("x.tar", raw, stats=stats) == [("x.tar/file", b"text")]
    assert stats.skipped == [{"name": "x.tar/part", "reason": "a tar member of an unknown kind"}]


def test_names_that_are_no_utf8_are_made_text() -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café"))
    assert contents("x.tar", raw.getvalue()) == [("x.tar/caf\N{REPLACEMENT CHARACTER}", b"")]


@pytest.mark.parametrize("n_zeros", [100, 512, 10_240])
def test_zeros_are_no_tar(n_zeros: int) -> None:
    assert contents("x", b"\0" * n_zeros) == [("x", b"\0" * n_zeros)]


def hostile(kind: bytes, size: int) -> bytes:
    header = tarfile.TarInfo("harm")
    header.type, header.size = kind, size
    return tar_of({"a": TEXT})[:1024] + header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


@pytest.mark.parametrize(
    "raw",
    [
        hostile(tarfile.REGTYPE, 1 << 60),
        hostile(tarfile.REGTYPE, -512),
        hostile(b"M", 1 << 60),
        hostile(b"M", -(1 << 40)),
        hostile(tarfile.XHDTYPE, 1 << 40),
        hostile(tarfile.XHDTYPE, -512),
        hostile(tarfile.GNUTYPE_LONGNAME, 1 << 40),
        hostile(tarfile.GNUTYPE_LONGNAME, 512) * 2_000,
        hostile(tarfile.GNUTYPE_LONGNAME, 512)[1024:2048] * 5_000,
    ],
)
@pytest.mark.parametrize("n_read", [0, None], ids=["unread", "read"])
def test_headers_made_to_harm_are_errors(raw: bytes, n_read: int | None) -> None:
    with pytest.raises(DataError, match=r"^x\.tar"):
        [leaf.read(n_read) for _, leaf in streams("x.tar", raw)]


def test_a_header_that_sends_back_is_an_error_not_a_loop() -> None:
    with pytest.raises(DataError, match=r"sent back from byte 1,536 to"):
        contents("x.tar", hostile(b"M", -(1 << 40)))
    with pytest.raises(DataError, match=r"a size of -1 bytes"):
        contents("x.tar", hostile(tarfile.REGTYPE, -1))


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "-512"},
        {"size": "9" * 5_000},
        {"GNU.sparse.map": "0,x"},
        {"GNU.sparse.map": "500,4,0,9", "GNU.sparse.size": "900"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.size": "text"},
        {"hdrcharset": "BINARY", "path": "text"},
    ],
)
def test_extended_headers_without_sense_never_end_in_another_error(headers: dict[str, str]) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size, member.pax_headers = 4, headers
        tar.addfile(member, io.BytesIO(b"text"))
    try:
        contents("x.tar", raw.getvalue())
    except DataError as error:
        told = ("cut short" in error.message, "sparse file" in error.message)
        assert error.__cause__ is not None or any(told)  # noqa: PT017


# --- zip --------------------------------------------------------------------------------------


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


each_method = pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


def packed_zip(method: int, packed: bytes, content: bytes, flags: int = 0) -> bytes:
    """Return a zip of the one file "a". Source: APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.16."""
    sizes = struct.pack("<III", zlib.crc32(content), len(packed), len(content))
    common = struct.pack("<HHHHH", 63, flags, method, 0, 0) + sizes + struct.pack("<HH", 1, 0)
    local = b"PK\3\4" + common + b"a" + packed
    directory = b"PK\1\2" + struct.pack("<H", 63) + common + bytes(14) + b"a"
    return local + directory + zip_end(1, len(directory), len(local))


def zip_end(n_members: int, directory_bytes: int, offset: int) -> bytes:
    counts = struct.pack("<HHHHIIH", 0, 0, n_members, n_members, directory_bytes, offset, 0)
    return b"PK\5\6" + counts


@each_method
def test_zip_members_are_read_in_order(method: int) -> None:
    members = {"a.txt": TEXT, "folder/b.txt": LONG, "empty": b"", "c": bytes(9 << 20)}
    assert contents("x.zip", zip_of(members, method)) == [
        (f"x.zip/{name}", content) for name, content in members.items()
    ]


@pytest.mark.parametrize("options", [[], ["-0"], ["-fz"]], ids=" ".join)
def test_what_the_zip_tool_writes_is_read(options: list[str], tmp_path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    (tmp_path / "folder").mkdir()
    members = {"a.txt": TEXT, "folder/b": LONG}
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("a.txt")
    command = ["zip", "-qry", *options, "x.zip", "a.txt", "folder", "link"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    found = contents("x", (tmp_path / "x.zip").read_bytes())
    assert found == [(f"x/{name}", content) for name, content in members.items()]


def test_a_zip_written_to_a_pipe_and_one_with_wide_sizes_are_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    for raw, wide in itertools.product((io.BytesIO(), Pipe()), (False, True)):
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in "ab":
                with archive.open(name, "w", force_zip64=wide) as member:
                    member.write(TEXT)
        assert contents("x", raw.getvalue()) == [("x/a", TEXT), ("x/b", TEXT)]
        raw.truncate(0)
        raw.seek(0)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_archives_inside_and_around_a_zip_are_read(suffix: str) -> None:
    inner = zip_of({"a": TEXT, "b.tar" + suffix: COMPRESS[suffix](tar_of({"c": LONG}))})
    expected = [("a", TEXT), ("b.tar/c", LONG)]
    for name, raw, prefix in [
        ("x.zip", inner, "x.zip/"),
        ("x.zip" + suffix, COMPRESS[suffix](inner), "x.zip/"),
        ("x.tar", tar_of({"y.zip": inner}), "x.tar/y.zip/"),
        ("x.zip", zip_of({"y.zip": inner}), "x.zip/y.zip/"),
    ]:
        assert contents(name, raw) == [(prefix + leaf, content) for leaf, content in expected]


def test_a_zip_with_a_comment_is_read_and_one_with_something_after_it_is_an_error() -> None:
    raw = io.BytesIO(zip_of({"a": TEXT}))
    with zipfile.ZipFile(raw, "a") as archive:
        archive.comment = b"ground twice"
    assert contents("x.zip", raw.getvalue()) == [("x.zip/a", TEXT)]
    for rest in (b"x", b"\0", b"\xff" * 34, LONG):
        with pytest.raises(DataError, match=r"^x\.zip: "):
            contents("x.zip", raw.getvalue() + rest)


def test_a_zip_of_more_members_than_its_end_can_count_is_read() -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for i in range(65_537):
            archive.writestr(f"{i}/", b"")
        archive.writestr("a", TEXT)
    whole = raw.getvalue()
    assert contents("x.zip", whole) == [("x.zip/a", TEXT)]
    # written without the records of a larger count, as some do, it is counted modulo 65,536
    start, wide_bytes = archive.start_dir, 56 + 20
    directory = whole[start : -22 - wide_bytes]
    narrow = whole[:start] + directory + zip_end(2, len(directory), start)
    assert contents("x.zip", narrow) == [("x.zip/a", TEXT)]
    with pytest.raises(DataError, match="its directory has 65,538 members, but its end says 3"):
        contents("x.zip", whole[:start] + directory + zip_end(3, len(directory), start))


def test_an_empty_zip_holds_nothing() -> None:
    assert zip_of({}).startswith(b"PK\5\6")
    assert contents("x.zip", zip_of({})) == []
    assert contents("x.zip", zip_of({"folder/": b""})) == []


@each_method
def test_a_cut_at_any_byte_of_a_zip_is_an_error(method: int) -> None:
    whole = zip_of({"a": TEXT, "b": LONG[:50]}, method)
    for cut in range(len(whole)):
        with pytest.raises(DataError, match=r"^x\.zip: "):
            contents("x.zip", whole[:cut])


@each_method
def test_no_flipped_bit_changes_what_a_zip_holds_unnoticed(method: int) -> None:
    whole = zip_of({"a": TEXT, "b": LONG[:50]}, method)
    n_errors = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = contents("x", bytes(damaged))
        except DataError:
            n_errors += 1
        else:  # a bit of no meaning, as in times or, here, names
            is_zip = damaged[:4] == b"PK\3\4"
            assert [content for _, content in found] == ([TEXT, LONG[:50]] if is_zip else [damaged])
    assert n_errors > 2 * len(whole)


def test_wrong_content_in_a_zip_is_an_error_with_the_numbers() -> None:
    raw = packed_zip(0, b"four", b"FOUR")
    with pytest.raises(DataError, match=r"^x\.zip/a: damaged or cut short zip \(Bad CRC-32"):
        contents("x.zip", raw)
    longer = bytearray(packed_zip(0, b"four", b"four"))
    for at in (22, longer.index(b"PK\1\2") + 24):  # its size, in both headers
        longer[at] = 5
    with pytest.raises(DataError, match=r"^x\.zip/a: 4 bytes, but its zip promises 5"):
        contents("x.zip", bytes(longer))


def test_an_encrypted_zip_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match=r"^x\.zip/a: encrypted: unpack the zip with its password"):
        contents("x.zip", packed_zip(0, b"four", b"four", flags=1))


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 97, 98, 99])
def test_unknown_methods_of_zip_are_errors_that_say_so(method: int) -> None:
    with pytest.raises(DataError, match=rf"^x\.zip/a: packed by zip's method {method}, which is"):
        contents("x.zip", packed_zip(method, b"four", b"four"))


def test_links_in_a_zip_are_no_text() -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a", TEXT)
    assert contents("x.zip", raw.getvalue()) == [("x.zip/a", TEXT)]


@pytest.mark.parametrize("last", [{"b": b"two"}, {}], ids=["members", "empty"])
def test_two_zips_joined_are_an_error_since_the_first_would_be_lost(last: dict[str, bytes]) -> None:
    joined = zip_of({"a": b"one"}) + zip_of(last)
    assert zipfile.ZipFile(io.BytesIO(joined)).namelist() == list(last)
    with pytest.raises(DataError, match="begins with something that its directory does not list"):
        contents("x.zip", joined)
    with pytest.raises(DataError, match="begins with something that its directory does not list"):
        contents("x.zip", zip_of({}) + zip_of({"a": b"one"}))


def test_members_of_a_zip_inside_one_another_are_an_error() -> None:
    one = packed_zip(0, LONG, LONG)
    local, directory = one.split(b"PK\1\2")[0], b"PK\1\2" + one.split(b"PK\1\2")[1][:-22]
    assert contents("x.zip", local + directory + zip_end(1, len(directory), len(local)))
    twice = local + directory * 2 + zip_end(2, 2 * len(directory), len(local))
    with pytest.raises(DataError, match=r"its members 'a' and 'a' overlap"):
        contents("x.zip", twice)


def test_a_zip_that_expands_a_thousandfold_is_refused_in_bounded_steps() -> None:
    zeros = bytes(100 << 20)
    raw = zip_of({"a": zeros}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    _, leaf = next(streams("x.zip", raw, max_ratio=100))
    with pytest.raises(DataError, match=r"x\.zip/a: expands to [\d,]+ bytes from [\d,]+ read"):
        deque(iter(partial(leaf.read, 1 << 20), b""), maxlen=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


OFFICE = {
    "docx": {"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<w:document/>"},
    "docx of another order": {"word/document.xml": b"<w/>", "[Content_Types].xml": b"<Types/>"},
    "odt": {"mimetype": b"application/vnd.oasis.opendocument.text", "content.xml": b"<office/>"},
    "epub": {"mimetype": b"application/epub+zip", "chapter.xhtml": b"<html/>"},
}


@pytest.mark.parametrize("kind", OFFICE)
def test_an_office_document_is_no_text_and_what_comes_after_it_is_read(kind: str) -> None:
    document = zip_of(OFFICE[kind])
    [(name, leaf)] = streams("x.docx", document)
    assert name == "x.docx"
    with pytest.raises(UnreadableError, match=r"^x\.docx: an office document or e-book, not text"):
        leaf.peek(HEAD_BYTES)
    raw = tar_of({"a": b"one", "b.docx": document, "c": b"three"})
    found = {}
    for name, leaf in streams("x.tar", raw):
        try:
            found[name] = leaf.read()
        except UnreadableError as error:
            found[name] = error.message.encode()[:5]
    assert found == {"x.tar/a": b"one", "x.tar/b.docx": b"x.tar", "x.tar/c": b"three"}


def test_a_zip_without_a_directory_keeps_its_cause() -> None:
    with pytest.raises(DataError, match=r"^x\.zip: damaged or cut short zip \(") as caught:
        contents("x.zip", zip_of({"a": TEXT})[:-1])
    assert isinstance(caught.value.__cause__, zipfile.BadZipFile)
