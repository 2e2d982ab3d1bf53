"""Decompress xz, zstd, gzip and bzip2 as they stream by, in blocks of a bounded size.

    stream --decompress--> bytes, bytes, ...

Python's own xz reader stops at padding, python-zstandard's readers take a cut file for a whole one
and let a few KiB become hundreds of MiB at once: hence one loop over small decoders instead.
"""

import bz2
import lzma
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
MAGIC_BYTES = 10  # the longest
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
        if self._block_at is None and len(self._held) >= 5:  # no frame is shorter
            self._has_blocks = self._held[1:4] != ZSTD_SKIPPABLE_MAGIC
            self._block_at = zstandard.frame_header_size(self._held) if self._has_blocks else 0
        end = self._end_of_blocks(max_length // ZSTD_BLOCK_BYTES)
        content = self._decoder.decompress(self._held[:end]) if end else b""
        self._held = self._held[end:]
        self.eof, self.unused_data = self._decoder.eof, self._decoder.unused_data
        return content

    def _end_of_blocks(self, n_blocks: int) -> int:
        """Return the end of the blocks that are whole in what is held, so many at most."""
        if self._block_at is None:
            return 0
        end = self._block_at
        self.needs_input = not self._has_blocks
        while self._has_blocks and not self.needs_input and n_blocks:
            header = int.from_bytes(self._held[end : end + 3], "little")
            is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
            block_end = end + 3 + (1 if kind == 1 else size)  # 1: one byte that is repeated
            if block_end > len(self._held):
                self.needs_input = True
            else:
                end = block_end
                n_blocks -= 1
                self._has_blocks = not is_last
        if not self._has_blocks:  # only a checksum follows, which expands to nothing
            self.needs_input = True
            return len(self._held)
        n_fed = min(end, len(self._held))
        self._block_at = end - n_fed
        return n_fed


# Decoders of one stream (or frame), with needs_input, eof, unused_data and decompress, as lzma's.
DECODERS: dict[str, Callable[[], Any]] = {
    "xz": lzma.LZMADecompressor,
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
    padding = PADDING.get(kind, 0)
    data, offset = b"", 0  # what was read and not used yet, and where it begins
    while data := data + stream.read(max(0, MAGIC_BYTES - len(data))):
        if not data.startswith(MAGICS[kind]):
            raise DataError(
                f"{name}: after its {kind} data ends, at byte {offset:,}, something "
                f"else follows ({data[:8]!r}): the file is damaged or two files were joined."
            )
        data, offset = yield from _decompress_one(name, stream, kind, limit, data, offset)
        n_zeros = 0
        while padding and (data := data or stream.read(READ_BYTES)).startswith(b"\0"):
            n_zeros += len(data) - len(data := data.lstrip(b"\0"))
        offset += n_zeros
        if padding and n_zeros % padding:
            raise DataError(
                f"{name}: {n_zeros:,} zero bytes after {kind} data, where they come in "
                f"multiples of {padding}: the file is damaged."
            )


def _decompress_one(
    name: str, stream: Stream, kind: str, limit: ExpansionLimit, data: bytes, offset: int
) -> Generator[bytes, None, tuple[bytes, int]]:
    """Yield the content of the stream that begins with ``data``, which begins at ``offset``.

    Return what was read of what follows it, and where that begins.
    """
    decoder = DECODERS[kind]()
    offset += len(data)
    feed_bytes = FIRST_FEED_BYTES
    while True:
        try:
            content = decoder.decompress(data, BLOCK_BYTES)
        except DECODER_ERRORS as error:
            raise DataError(
                f"{name}: corrupt {kind} data before byte {offset:,} ({error}). "
                "Fetch the file again."
            ) from error
        if content:
            limit.add(name, len(content))
            yield content
        if decoder.eof:
            return decoder.unused_data, offset - len(decoder.unused_data)
        data = b""
        if decoder.needs_input:
            data = stream.read(feed_bytes)
            offset += len(data)
            feed_bytes = min(2 * feed_bytes, READ_BYTES)
            if not data:
                raise DataError(
                    f"{name}: cut short: the {kind} data stops at byte {offset:,}, "
                    "before its end mark. Fetch the file again."
                )
