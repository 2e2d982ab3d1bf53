"""Decompress xz, zstd, gzip and bzip2 as they stream by, in blocks of a bounded size.

    stream --decompress--> bytes, bytes, ...

Python's own xz reader stops at padding, python-zstandard's readers take a cut file for a whole one
and let a few KiB become hundreds of MiB at once: hence one loop over small decoders instead.
"""

import bz2
import lzma
import re
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import zstandard
from isal import igzip_lib, isal_zlib

from common.errors import DataError
from prepare.archives.streams import MAGICS, ZSTD_SKIPPABLE_MAGIC, ExpansionLimit, Stream

# Small enough for a core's own cache, and for memory that is used again: .jsonl.zst is read in 0.20
# of the seconds where blocks of 4 MiB, which come in new pages, take 0.23.
BLOCK_BYTES = 1 << 19  # decompressed at a time
READ_BYTES = 1 << 17  # compressed bytes read at a time
FIRST_FEED_BYTES = 1 << 14  # what follows a stream's end is copied: little where streams are short
ZSTD_BLOCK_BYTES = 128 << 10  # content of a block at most; source: RFC 8878, section 3.1.1.2.3
MAGIC_BYTES = 13  # the longest
ZSTD_WINDOW_BYTES = 1 << 31  # of archives made with --long=31


class ZstdFrame:
    """zstandard's decoder of one frame, with what the decoders of lzma and bz2 have.

    It returns all that its input expands to, 128 KiB for 4 bytes at worst: so it is fed a few
    blocks at a time, which their headers delimit. Source: RFC 8878, section 3.1.
    """

    def __init__(self) -> None:
        self.needs_input, self.eof, self.unused_data = True, False, b""
        unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._decoder = unpacker.decompressobj(write_size=BLOCK_BYTES)
        self._held = b""  # not fed to it yet
        self._block_at: int | None = None  # where in it the next block begins, once that is known
        self._has_blocks = True  # some are still to come

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return at most ``max_length`` bytes of content, which must be a block's or more."""
        self._held += data
        if self._block_at is None:
            self._has_blocks = self._held[1:4] != ZSTD_SKIPPABLE_MAGIC
            self._block_at = zstandard.frame_header_size(self._held) if self._has_blocks else 0
        end = self._block_at
        for _ in range(max_length // ZSTD_BLOCK_BYTES):
            header = int.from_bytes(self._held[end : end + 3], "little")
            is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
            block_end = end + 3 + (1 if kind == 1 else size)  # 1: one byte that is repeated
            self.needs_input = block_end > len(self._held)
            if self.needs_input or not self._has_blocks:
                break
            end, self._has_blocks = block_end, not is_last
        if not self._has_blocks:  # only a checksum follows, which expands to nothing
            self.needs_input, end = True, len(self._held)
        fed, self._held = self._held[:end], self._held[end:]
        self._block_at = end - len(fed)
        content = self._decoder.decompress(fed) if fed else b""
        self.eof, self.unused_data = self._decoder.eof, self._decoder.unused_data
        return content


# Decoders of one stream (or frame), with needs_input, eof, unused_data and decompress, as lzma's.
DECODERS: dict[str, Callable[[], Any]] = {
    "xz": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
    "zstd": ZstdFrame,
    "gzip": partial(igzip_lib.IgzipDecompressor, igzip_lib.DECOMP_GZIP),  # it checks the CRC
    "bzip2": bz2.BZ2Decompressor,
}
PADDING = {"xz": 4, "gzip": 1}  # zero bytes between streams come in multiples of this
ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]
DECODER_ERRORS = (lzma.LZMAError, zstandard.ZstdError, ISAL_ERROR, OSError, EOFError)


def decompress(
    name: str, stream: Stream, kind: str, limit: ExpansionLimit
) -> Generator[bytes, None, None]:
    """Yield the content of all streams of a compressed file, in blocks of BLOCK_BYTES at most.

    Raise DataError where the file is damaged, cut short, or expands beyond the limit.
    """
    padding, magic = PADDING.get(kind, 0), re.compile(MAGICS[kind])
    data = b""  # what was read and not used yet
    while data := data + stream.read(max(0, MAGIC_BYTES - len(data))):
        if not magic.match(data):
            raise DataError(
                f"{name}: after its {kind} data ends, at byte {stream.tell() - len(data):,}, "
                f"something else follows ({data[:8]!r}): the file is damaged or two files were "
                "joined."
            )
        data = yield from _decompress_one(name, stream, kind, limit, data)
        n_zeros = 0
        while padding and (data := data or stream.read(READ_BYTES)).startswith(b"\0"):
            n_zeros += len(data) - len(data := data.lstrip(b"\0"))
        if padding and n_zeros % padding:
            raise DataError(
                f"{name}: {n_zeros:,} zero bytes after {kind} data, where they come in "
                f"multiples of {padding}: the file is damaged."
            )


def _decompress_one(
    name: str, stream: Stream, kind: str, limit: ExpansionLimit, data: bytes
) -> Generator[bytes, None, bytes]:
    """Yield the content of the stream that begins with ``data``; return what was read behind it."""
    decoder = DECODERS[kind]()
    feed_bytes = FIRST_FEED_BYTES
    while True:
        try:
            content = decoder.decompress(data, BLOCK_BYTES)
        except DECODER_ERRORS as error:
            raise DataError(
                f"{name}: corrupt {kind} data before byte {stream.tell():,} ({error}). "
                "Fetch the file again."
            ) from error
        if content:
            limit.add(name, len(content))
            yield content
        if decoder.eof:
            following: bytes = decoder.unused_data
            return following
        data = b""
        if decoder.needs_input:
            data = stream.read(feed_bytes)
            feed_bytes = min(2 * feed_bytes, READ_BYTES)
            if not data:
                raise DataError(
                    f"{name}: cut short: the {kind} data stops at byte {stream.tell():,}, "
                    "before its end mark. Fetch the file again."
                )
