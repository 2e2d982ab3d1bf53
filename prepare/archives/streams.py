"""Bytes that stream by, as file objects, and how many of them may come out of one source."""

import io
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from common.errors import DataError

Stream: TypeAlias = "io.BufferedReader[Any]"
Entries: TypeAlias = Generator[tuple[str, Stream], None, None]  # of an archive: name and content

HEAD_BYTES = 1 << 16  # how far content is looked at; also the buffer of each stream
SPOOL_BYTES = 8 << 20  # of a file inside an archive: held in memory up to here, then on disk
FREE_BYTES = 64 << 20  # no harm can be done with so little, whatever it was made from


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


class _IteratorReader(io.RawIOBase):
    """An iterator of bytes as a raw stream that fills what it is asked to fill."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._started = False
        self._error: DataError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, short only at the end, or where an error is raised by the next call."""
        if self._error is not None:
            raise self._error
        n_filled = 0
        while n_filled < len(buffer):
            if not self._rest:
                try:
                    block = next(self._blocks, b"")
                except DataError as error:
                    if not n_filled or not self._started:  # half a head does not tell what it is
                        raise
                    self._error = error  # what came before it is good
                    break
                if not block:
                    break
                self._rest = memoryview(block)
            part = self._rest[: len(buffer) - n_filled]
            buffer[n_filled : n_filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            n_filled += len(part)
        self._started = True
        return n_filled


def stream_of(blocks: Iterator[bytes], buffer_bytes: int = HEAD_BYTES) -> Stream:
    """Return a stream of what ``blocks`` yields; a DataError of theirs is raised by it."""
    return io.BufferedReader(_IteratorReader(blocks), buffer_bytes)


def failing_stream(error: DataError) -> Stream:
    """Return a stream that raises ``error`` when it is read."""

    def blocks() -> Iterator[bytes]:
        raise error
        yield b""

    return stream_of(blocks())


@contextmanager
def seekable(stream: Stream) -> Iterator[Any]:
    """Give the stream itself, or a copy of one that only streams by."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        shutil.copyfileobj(stream, spool, SPOOL_BYTES)
        yield spool
