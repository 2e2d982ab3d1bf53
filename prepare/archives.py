"""Peel compression and tar layers off a stream, by content, until only plain files are left.

    openwebtext.tar.xz -> xz -> tar -> urlsf_subset00-1_data.xz -> xz -> tar -> 0001.txt

Nothing is extracted to disk and no name is trusted: a layer is what its first bytes say it is.
A name is only held to what it promises: an .xz that is no archive at all is an error.
"""

import bz2
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import zstandard

from common.errors import DataError

Stream: TypeAlias = "io.BufferedReader[Any]"

HEAD_BYTES = 1 << 16  # how far content is looked at; also what a decoder hands on at a time
MAX_DEPTH = 8  # no corpus nests deeper; a file made to nest for ever does
TAR_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Codec:
    """A compression format: how it begins, and a decoder of one stream (or frame) of it."""

    name: str
    suffix: str
    magics: tuple[bytes, ...]
    decoder: Callable[[], Any]
    read_bytes: int  # compressed bytes fed at a time: bounds what one call can expand to
    padding: int  # zero bytes between streams come in multiples of this; 0: none allowed


ZSTD_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
CODECS = (
    Codec("xz", ".xz", (b"\xfd7zXZ\x00",), lzma.LZMADecompressor, 1 << 16, 4),
    Codec(
        "zstd",
        ".zst",
        (b"\x28\xb5\x2f\xfd", *ZSTD_SKIPPABLE),
        # 2 GiB: the window of archives made with --long=31
        lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
        1 << 13,  # a block of 4 bytes can expand to 128 KiB
        0,
    ),
    Codec("gzip", ".gz", (b"\x1f\x8b\x08",), lambda: zlib.decompressobj(wbits=31), 1 << 14, 1),
    Codec(
        "bzip2",
        ".bz2",
        # a block, or, where the content is empty, the end mark
        tuple(
            b"BZh%d" % level + mark
            for level in range(1, 10)
            for mark in (b"1AY&SY", b"\x17rE8P\x90")
        ),
        bz2.BZ2Decompressor,
        1 << 14,
        0,
    ),
)
DECODER_ERRORS = (lzma.LZMAError, zstandard.ZstdError, zlib.error, OSError)


class UnreadableError(DataError):
    """A file that holds no text: left out where it was found, an error where it was named."""


def leaves(name: str, stream: Stream, depth: int = 0) -> Iterator[tuple[str, Stream]]:
    """Yield (name, stream) of each plain file inside ``stream``; read one before taking the next.

    Raises: DataError on truncated or corrupt layers, with the name and the offset.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"{name}: more than {MAX_DEPTH} layers of archives inside one another.")
    head = stream.peek(HEAD_BYTES)
    codec = next((c for c in CODECS if head.startswith(c.magics)), None)
    if codec is not None:
        chunks = _decompress(name, stream, codec)
        inner = io.BufferedReader(_ChunkReader(chunks), HEAD_BYTES)
        yield from leaves(name.removesuffix(codec.suffix), inner, depth + 1)
    elif _begins_tar(head):
        for member_name, member in _tar_members(name, stream):
            yield from leaves(f"{name}/{member_name}", member, depth + 1)
    else:
        _check_promise(name, head)
        yield name, stream


def _check_promise(name: str, head: bytes) -> None:
    promised = next((c for c in CODECS if name.endswith(c.suffix)), None)
    if promised is None and not name.endswith(".tar"):
        return
    kind = promised.name if promised else "tar"
    found = f"begins with {head[:8]!r}" if head else "is empty (0 bytes)"
    raise DataError(
        f"{name}: named as {kind}, but the content is no archive: it {found}. It may be a failed "
        "download: fetch it again, or rename it if it is plain text."
    )


class _ChunkReader(io.RawIOBase):
    """An iterator of bytes as a raw stream that fills what it is asked to fill."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_filled = 0
        while n_filled < len(buffer):
            if not self._rest:
                chunk = next(self._chunks, b"")
                if not chunk:
                    break
                self._rest = memoryview(chunk)
            part = self._rest[: len(buffer) - n_filled]
            buffer[n_filled : n_filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            n_filled += len(part)
        return n_filled


def _decompress(name: str, stream: Stream, codec: Codec) -> Iterator[bytes]:
    """Yield the content of all streams (frames) of a compressed file, one after another.

    Python's own xz reader stops at padding, and python-zstandard's readers report no truncation:
    both would lose data without a word, hence this loop.
    """
    decoder: Any = None
    data, offset = b"", 0
    while True:
        if not data:
            data = stream.read(codec.read_bytes)
            offset += len(data)
        if not data:
            break
        if decoder is None:
            data = _skip_padding(name, stream, codec, data)
            if not data:
                break
            if not data.startswith(codec.magics):
                raise DataError(
                    f"{name}: after its {codec.name} data ends, at byte {offset - len(data):,}, "
                    f"something else follows ({data[:8]!r}): the file is damaged or two files "
                    "were joined."
                )
            decoder = codec.decoder()
        try:
            content = decoder.decompress(data)
        except DECODER_ERRORS as error:
            raise DataError(
                f"{name}: corrupt {codec.name} data before byte {offset:,} ({error}). "
                "Fetch the file again."
            ) from error
        data = b""
        if decoder.eof:
            data, decoder = decoder.unused_data, None
        if content:
            yield content
    if decoder is not None:
        raise DataError(
            f"{name}: cut short: the {codec.name} data stops at byte {offset:,}, before its end "
            "mark. Fetch the file again."
        )


def _skip_padding(name: str, stream: Stream, codec: Codec, data: bytes) -> bytes:
    """Return ``data`` from the next stream's first byte on, long enough to know it by."""
    n_zeros = 0
    if codec.padding:
        while True:
            stripped = data.lstrip(b"\0")
            n_zeros += len(data) - len(stripped)
            data = stripped
            if data or not (data := stream.read(codec.read_bytes)):
                break
        if n_zeros % codec.padding:
            raise DataError(
                f"{name}: {n_zeros} zero bytes after {codec.name} data, where they come in "
                f"multiples of {codec.padding}: the file is damaged."
            )
    longest = max(len(magic) for magic in codec.magics)
    while data and len(data) < longest:
        more = stream.read(longest - len(data))
        if not more:
            break
        data += more
    return data


def _begins_tar(head: bytes) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(head[:TAR_BLOCK_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return bool(header.name)


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that is damaged, or cut, is an error: tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("EmptyHeaderError", "EOFHeaderError"):  # the true end
                raise
            raise tarfile.ReadError(f"bad header at byte {tar.offset:,} of the tar") from error


def _tar_members(name: str, stream: Stream) -> Iterator[tuple[str, Stream]]:
    """Yield the regular files of a tar, and of tars joined behind it, as they stream by."""
    try:
        with tarfile.open(
            fileobj=stream,
            mode="r|",
            tarinfo=_StrictTarInfo,
            ignore_zeros=True,
            encoding="utf-8",
            errors="replace",  # names are only shown, and must be text to be written to meta.json
        ) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    content = _ChunkReader(_member_chunks(f"{name}/{member.name}", file))
                    yield member.name, io.BufferedReader(content, HEAD_BYTES)
    except tarfile.TarError as error:
        raise DataError(f"{name}: damaged or cut short tar ({error}). Fetch it again.") from error


def _member_chunks(name: str, file: IO[bytes]) -> Iterator[bytes]:
    try:
        while chunk := file.read(HEAD_BYTES):
            yield chunk
    except tarfile.TarError as error:
        raise DataError(f"{name}: cut short inside its tar ({error}). Fetch it again.") from error
