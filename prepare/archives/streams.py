"""Bytes that stream by, as file objects: which archive they are, and how many may come of them.

A file is what its first bytes say it is; its name is only held to what it promises.
"""

import codecs
import errno
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from common.errors import DataError

Stream: TypeAlias = "io.BufferedReader[Any]"
Entries: TypeAlias = Generator[tuple[str, Stream], None, None]  # of an archive: name and content

HEAD_BYTES = 1 << 16  # how far content is looked at; also the buffer of each stream
SPOOL_BYTES = 8 << 20  # of a file inside an archive: held in memory up to here, then on disk
FREE_BYTES = 64 << 20  # no harm can be done with so little, whatever it was made from

ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # behind one of 16 bytes
MAGICS = {
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]" + re.escape(ZSTD_SKIPPABLE_MAGIC),
    "gzip": rb"\x1f\x8b\x08",
    # of LZMA alone: its usual properties, the size of its dictionary, that of its content or none
    "lzma": rb"\x5d\x00\x00[\x00-\xff]{2}(?:\xff{8}|[\x00-\xff]{5}\x00{3})",
    "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",  # a block, or, where all is empty, the end mark
    "zip": rb"PK(?:\x03\x04|\x05\x06)",  # a member, or the end of a zip without any
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "rar": rb"Rar!\x1a\x07",
    "lz4": rb"\x04\x22\x4d\x18",
    "lzip": rb"LZIP\x01",
    "compress": rb"\x1f\x9d",
}
ANY_MAGIC = re.compile(b"|".join(b"(%b)" % magic for magic in MAGICS.values()))
UNSUPPORTED = {  # each with the command that unpacks it
    **{"7z": "7z x", "rar": "unrar x"},
    **{"lz4": "lz4 -d", "lzip": "lzip -d", "compress": "gzip -d"},
}
PARQUET_MAGIC = b"PAR1"
# What git writes in the place of a large file. Source: git-lfs, docs/spec.md
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # and UTF-32-LE's
COMPRESSED_EXTENSION = re.compile(r"\.(xz|zst|gz|bz2|lzma)\Z")
EXTENSIONS = {
    **{f".{kind}": kind for kind in ("xz", "lzma", "tar", "zip", "7z", "parquet")},
    **{".zst": "zstd", ".gz": "gzip", ".bz2": "bzip2"},
}
TAR_BLOCK_BYTES = 512
TAR_CHECKSUM = re.compile(rb"[ \0]*[0-7]+[ \0]|[ \0]*[0-7]{6,}|[\x80\xff]")  # octal, or binary


PART = re.compile(r"(.+\.(?:xz|zst|gz|bz2|lzma|tar|tgz|txz|zip|7z))\.(?:\d{2,3}|a[a-z])\Z")


def archive_kind(name: str, head: bytes) -> str:
    """Return a key of MAGICS, "tar", or "" for none; raise DataError for what is unreadable."""
    if part := PART.match(name):
        raise DataError(
            f"{name}: by its name a part of a file that was split. Join them: "
            f"cat {part[1]}.* | python -m prepare text -"
        )
    if magic := ANY_MAGIC.match(head):
        kind = list(MAGICS)[magic.lastindex - 1]  # type: ignore[operator]  # of the one group
        if command := UNSUPPORTED.get(kind):
            advice = f"unpack it with '{command}' and name the folder."
            raise DataError(f"{name}: {kind} is not supported: {advice}")
        return kind
    if _begins_tar(head):
        return "tar"
    if head.startswith(LFS_POINTER):
        raise DataError(
            f"{name}: a pointer of Git LFS to a file that is not here: run 'git lfs pull' where it "
            "was cloned, or download the file itself."
        )
    for extension, kind in EXTENSIONS.items():
        if name.endswith(extension) and not head.startswith(PARQUET_MAGIC):
            found = f"begins with {head[:8]!r}" if head else "is empty (0 bytes)"
            what = kind if kind == "parquet" else "archive"
            raise DataError(
                f"{name}: named as {kind}, but the content is no {what}: it {found}. It may be a "
                "failed download: fetch it again, or rename it if it is plain text."
            )
    return ""


def _begins_tar(head: bytes) -> bool:
    if len(head) < TAR_BLOCK_BYTES or not TAR_CHECKSUM.match(head, 148):  # as of text hardly ever
        return False
    try:
        return bool(tarfile.TarInfo.frombuf(head[:TAR_BLOCK_BYTES], "utf-8", "replace").name)
    except tarfile.HeaderError:
        return False


def begins_as_json(head: bytes) -> bool:
    """Return whether the first character is that of an object or an array."""
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"["))


@contextmanager
def damage_as_data_error(
    name: str, kind: str, errors: tuple[type[Exception], ...]
) -> Iterator[None]:
    """Raise a DataError for ``errors`` of the library that reads a file of this kind."""
    try:
        yield
    except errors as error:
        message = f"{name}: damaged or cut short {kind} ({error}). Fetch it again."
        raise DataError(message) from error


@dataclass
class ExpansionLimit:
    """What the archives of one source may expand to, all layers added up."""

    max_ratio: float
    n_read: Callable[[], int]  # how many bytes of the source were read from disk so far
    n_out: int = 0

    def add(self, name: str, n_bytes: int) -> None:
        """Count bytes out of the layer ``name``; raise DataError when it is too much."""
        self.n_out += n_bytes
        n_read = max(1, self.n_read())
        ratio = self.n_out / n_read
        if self.n_out > FREE_BYTES and ratio > self.max_ratio:
            raise DataError(
                f"{name}: expands to {self.n_out:,} bytes from {n_read:,} read, {ratio:,.0f} "
                f"times as many. --max-ratio is {self.max_ratio:,g}: raise it if the file is "
                "to be trusted."
            )

    def counted(self, blocks: Generator[bytes]) -> Generator[bytes, None, None]:
        """Yield blocks of a layer that another process checked, and count them here too."""
        with closing(blocks):
            for block in blocks:
                self.n_out += len(block)
                yield block


class _IteratorReader(io.RawIOBase):
    """An iterator of bytes as a raw stream that fills what it is asked to fill."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._at = 0
        self._error: DataError | None = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, short only at the end, or where an error is raised by the next call."""
        if self._error is not None:
            raise self._error
        n_filled = 0
        while n_filled < len(buffer):
            try:
                self._rest = self._rest or memoryview(next(self._blocks, b""))
            except DataError as error:
                if not n_filled or not self._at:  # half a head does not tell what it is
                    raise
                self._error = error  # what came before it is good
            if not self._rest:
                break
            part = self._rest[: len(buffer) - n_filled]
            buffer[n_filled : n_filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            n_filled += len(part)
        self._at += n_filled
        return n_filled


def stream_of(blocks: Iterator[bytes], buffer_bytes: int = HEAD_BYTES) -> Stream:
    """Return a stream of what ``blocks`` yields; a DataError of theirs is raised by it."""
    return io.BufferedReader(_IteratorReader(blocks), buffer_bytes)


def failing_stream(error: DataError) -> Stream:
    """Return a stream that raises ``error`` when it is read."""

    def fail() -> bytes:
        raise error

    return stream_of(iter(fail, b""))


def decode(
    name: str, blocks: Iterator[bytes], encoding: str, errors: str, n_before: int
) -> Iterator[str]:
    """Yield the characters of each block; the first begins at byte ``n_before`` of the file."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in chain(blocks, [b""]):
        n_before += len(block)
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise bad_byte(name, error, n_before - len(error.object), encoding) from error
        except UnicodeError as error:  # UTF-16 or UTF-32 of either order, without its mark
            raise DataError(
                f"{name}: does not begin with a byte order mark, so {encoding} leaves open which "
                f"byte comes first. Pass --encoding {encoding}-le, or {encoding}-be."
            ) from error


def bad_byte(where: str, error: UnicodeDecodeError, n_before: int, encoding: str) -> DataError:
    """Return the error for a byte behind ``n_before`` others of ``where`` and those decoded."""
    encoding = "UTF-8" if encoding == "utf-8" else encoding
    byte = error.object[error.start]
    return DataError(
        f"{where}, byte {n_before + error.start:,}: {byte:#04x} is not {encoding}. "
        "Convert the file, or pass --on-bad-bytes replace."
    )


@contextmanager
def temporary_space(what: str) -> Iterator[None]:
    """Raise a DataError that names the folder where no room is left for a copy of ``what``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{tempfile.gettempdir()}: no room for a copy of {what} ({error.strerror}). Set TMPDIR "
            "to a folder with more."
        ) from error


@contextmanager
def seekable(stream: Stream) -> Iterator[Any]:
    """Give the stream itself, or a copy of one that only streams by."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        with temporary_space("a file inside an archive"):
            shutil.copyfileobj(stream, spool, SPOOL_BYTES)
        yield spool
