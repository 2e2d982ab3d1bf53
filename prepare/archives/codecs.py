"""Decompress xz, zstd, gzip and bzip2 as they stream by, in chunks of a bounded size.

    stream --decompressed--> bytes, bytes, ...

Python's own xz reader stops at padding, python-zstandard's readers take a cut file for a whole one
and let a few KiB become hundreds of MiB at once: hence one loop over small decoders instead.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import zstandard

from common.errors import DataError
from prepare.archives.streams import Stream

Buffer: TypeAlias = bytes | memoryview

# Small enough for a core's own cache, and for memory that is used again: .jsonl.zst is read in 0.20
# of the seconds where chunks of 4 MiB, which come in new pages, take 0.23.
CHUNK_BYTES = 1 << 19  # decompressed at a time
READ_BYTES = 1 << 17  # compressed bytes read at a time
FIRST_FEED_BYTES = 1 << 14  # what follows a stream's end is copied: little where streams are short
FREE_BYTES = 64 << 20  # no harm can be done with so little, whatever it was made from
ZSTD_BLOCK_BYTES = 128 << 10  # content of a block at most; source: RFC 8878, section 3.1.1.2.3
ZSTD_WINDOW_BYTES = 1 << 31  # of archives made with --long=31


class ExpansionLimit:
    """What the archives of one source may expand to, all layers added up."""

    def __init__(self, max_ratio: float, n_read: Callable[[], int]) -> None:
        self.n_out = 0
        self.n_read = n_read  # how many bytes of the source were read from disk so far
        self._max_ratio = max_ratio

    def add(self, name: str, n_bytes: int) -> None:
        """Count ``n_bytes`` of content; ``name`` is the layer they come from.

        Raises: DataError when it is too much for what was read.
        """
        self.n_out += n_bytes
        if self.n_out <= FREE_BYTES:
            return
        n_read = max(1, self.n_read())
        ratio = self.n_out / n_read
        if ratio > self._max_ratio:
            raise DataError(
                f"{name}: expands to {self.n_out:,} bytes from {n_read:,} read, {ratio:,.0f} "
                f"times as many. --max-ratio is {self._max_ratio:,g}: raise it if the file is "
                "to be trusted."
            )


class Decoder(Protocol):
    """A decoder of one stream (member, frame), as lzma and bz2 have it."""

    @property
    def needs_input(self) -> bool:
        """Whether more can only come out of more input; then ``decompress`` may be given some."""

    @property
    def eof(self) -> bool:
        """Whether the stream came to its end."""

    @property
    def unused_data(self) -> bytes:
        """What followed the end in the input given last."""

    def decompress(self, data: Buffer, max_length: int, /) -> bytes:
        """Return at most ``max_length`` bytes of content."""


class Deflate:
    """zlib's decoder as a Decoder; ``wbits`` is zlib's: of gzip members, or of bare deflate."""

    def __init__(self, wbits: int) -> None:
        self._decoder = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """Whether the member came to its end."""
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        """What followed the end in the input given last."""
        return self._decoder.unused_data

    def decompress(self, data: Buffer, max_length: int, /) -> bytes:
        """Return at most ``max_length`` bytes of content."""
        content = self._decoder.decompress(data or self._decoder.unconsumed_tail, max_length)
        # a call that gave all it may can leave more in zlib's own window, with no tail to tell
        self.needs_input = not self._decoder.unconsumed_tail and len(content) < max_length
        return content


class ZstdFrame:
    """A zstd frame, given to the package's decoder by whole blocks, which bounds what comes out.

    Skippable frames have no content. Source: RFC 8878, section 3.1.
    """

    def __init__(self) -> None:
        self.needs_input = True
        self.eof = False
        self.unused_data = b""
        self._held = b""  # from ``_at`` on it is not decoded yet
        self._at = 0
        self._decoder: Any = None  # known once the frame's header is
        self._checksum_bytes = 0
        self._n_to_skip = 0  # bytes of a skippable frame that are to come

    def decompress(self, data: Buffer, max_length: int, /) -> bytes:
        """Return at most ``max_length`` bytes of content, which must be a block's or more."""
        if data:
            self._held, self._at = self._held[self._at :] + data, 0
        if self._decoder is None and not self._n_to_skip:
            self._begin()
        if self._n_to_skip:
            return self._skip()
        if self._decoder is None:
            return b""
        start = self._at
        is_last = self._pass_whole_blocks(max_length)
        blocks = memoryview(self._held)[start : self._at]
        content: bytes = self._decoder.decompress(blocks) if blocks else b""
        if is_last:
            assert self._decoder.eof
            self.eof, self.unused_data = True, self._held[self._at :]
        return content

    def _begin(self) -> None:
        """Read the frame's header, once it is whole."""
        head = self._held[:18]  # no header is longer
        if len(head) < 8:  # a skippable one; other frames have 9 bytes at least
            return
        if head[1:4] == b"\x2a\x4d\x18":
            self._n_to_skip = 8 + int.from_bytes(head[4:8], "little")
        elif len(head) >= zstandard.frame_header_size(head):
            self._checksum_bytes = 4 * zstandard.get_frame_parameters(head).has_checksum
            unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
            self._decoder = unpacker.decompressobj(write_size=CHUNK_BYTES)
            self._at = zstandard.frame_header_size(head)
            self._decoder.decompress(head[: self._at])

    def _pass_whole_blocks(self, max_length: int) -> bool:
        """Move behind the blocks that are whole, and return whether the last is among them."""
        n_out = is_last = 0
        while not is_last and n_out + ZSTD_BLOCK_BYTES <= max_length:
            header = int.from_bytes(self._held[self._at : self._at + 3], "little")
            is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
            body_bytes = 1 if kind == 1 else size  # of one byte that is repeated
            end = self._at + 3 + body_bytes + is_last * self._checksum_bytes
            if len(self._held) < end:
                self.needs_input = True
                return False
            self._at = end
            n_out += ZSTD_BLOCK_BYTES if kind == 2 else size  # of a compressed one it is not known
        self.needs_input = False
        return bool(is_last)

    def _skip(self) -> bytes:
        n_skipped = min(self._n_to_skip, len(self._held) - self._at)
        self._n_to_skip -= n_skipped
        self._at += n_skipped
        if not self._n_to_skip:
            self.eof, self.unused_data = True, self._held[self._at :]
        return b""


@dataclass(frozen=True)
class Codec:
    """A compression format: how it begins, and a decoder of one stream (or frame) of it."""

    name: str
    suffix: str
    magics: tuple[bytes, ...]
    decoder: Callable[[], Decoder]
    padding: int  # zero bytes between streams come in multiples of this; 0: none allowed


XZ = Codec("xz", ".xz", (b"\xfd7zXZ\x00",), lzma.LZMADecompressor, 4)
ZSTD = Codec(
    "zstd",
    ".zst",
    # a frame, or a skippable one
    (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
    ZstdFrame,
    0,
)
GZIP = Codec("gzip", ".gz", (b"\x1f\x8b\x08",), partial(Deflate, 16 + zlib.MAX_WBITS), 1)
BZIP2 = Codec(
    "bzip2",
    ".bz2",
    # a block, or, where the content is empty, the end mark
    tuple(
        b"BZh%d" % level + mark for level in range(1, 10) for mark in (b"1AY&SY", b"\x17rE8P\x90")
    ),
    bz2.BZ2Decompressor,
    0,
)
CODECS = (XZ, ZSTD, GZIP, BZIP2)
DECODER_ERRORS = (lzma.LZMAError, zstandard.ZstdError, zlib.error, OSError, EOFError)


class Input:
    """A stream that is read in large chunks, and of which the end can be given back."""

    def __init__(self, stream: Stream) -> None:
        self.offset = 0  # of the byte that comes next
        self._stream = stream
        self._chunk = memoryview(b"")
        self._at = 0

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes, ``n_bytes`` at most; none at the end of the stream."""
        if self._at == len(self._chunk):
            self._chunk, self._at = memoryview(self._stream.read(READ_BYTES)), 0
        piece = self._chunk[self._at : self._at + n_bytes]
        self._at += len(piece)
        self.offset += len(piece)
        return piece

    def give_back(self, n_bytes: int) -> None:
        """Go back by less than was taken last."""
        self._at -= n_bytes
        self.offset -= n_bytes
        assert self._at >= 0

    def head(self, n_bytes: int) -> bytes:
        """Return the next ``n_bytes``, fewer only at the end, without taking them."""
        if len(self._chunk) - self._at < n_bytes:
            rest = bytes(self._chunk[self._at :])
            more = self._stream.read(max(READ_BYTES, n_bytes))
            self._chunk, self._at = memoryview(rest + more), 0
        return bytes(self._chunk[self._at : self._at + n_bytes])

    def skip_zeros(self) -> int:
        """Take the zero bytes that come next and return how many they were."""
        start = self.offset
        while piece := self.take(READ_BYTES):
            if rest := bytes(piece).lstrip(b"\0"):
                self.give_back(len(rest))
                break
        return self.offset - start


def codec_of(head: bytes) -> Codec | None:
    """Return the compression that content beginning with ``head`` has."""
    return next((codec for codec in CODECS if head.startswith(codec.magics)), None)


def decompressed(
    name: str, stream: Stream, codec: Codec, limit: ExpansionLimit
) -> Generator[bytes, None, None]:
    """Yield the content of all streams of a compressed file, in chunks of CHUNK_BYTES at most.

    Raises: DataError where the file is damaged, cut short, or expands beyond the limit.
    """
    source = Input(stream)
    longest = max(len(magic) for magic in codec.magics)
    while head := source.head(longest):
        if not head.startswith(codec.magics):
            raise DataError(
                f"{name}: after its {codec.name} data ends, at byte {source.offset:,}, something "
                f"else follows ({head[:8]!r}): the file is damaged or two files were joined."
            )
        yield from decoded(name, source, codec.name, codec.decoder(), limit)
        n_zeros = source.skip_zeros() if codec.padding else 0
        if n_zeros and n_zeros % codec.padding:
            raise DataError(
                f"{name}: {n_zeros:,} zero bytes after {codec.name} data, where they come in "
                f"multiples of {codec.padding}: the file is damaged."
            )


def decoded(
    name: str, source: Input, kind: str, decoder: Decoder, limit: ExpansionLimit
) -> Iterator[bytes]:
    """Yield the content of the one stream that comes next, and take it from ``source``."""
    feed_bytes = FIRST_FEED_BYTES
    while not decoder.eof:
        piece = memoryview(b"")
        if decoder.needs_input:
            piece = source.take(feed_bytes)
            feed_bytes = min(2 * feed_bytes, READ_BYTES)
            if not piece:
                raise DataError(
                    f"{name}: cut short: the {kind} data stops at byte {source.offset:,}, before "
                    "its end mark. Fetch the file again."
                )
        try:
            content = decoder.decompress(piece, CHUNK_BYTES)
        except DECODER_ERRORS as error:
            raise DataError(
                f"{name}: corrupt {kind} data before byte {source.offset:,} ({error}). "
                "Fetch the file again."
            ) from error
        if content:
            limit.add(name, len(content))
            yield content
    source.give_back(len(decoder.unused_data))
