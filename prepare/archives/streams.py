"""Bytes that stream by, as file objects: an iterator, a span, or on disk where one must seek."""

import io
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from common.errors import DataError

Stream: TypeAlias = "io.BufferedReader[Any]"
Entries: TypeAlias = Generator[tuple[str, Stream], None, None]  # of an archive: name and content

HEAD_BYTES = 1 << 16  # how far content is looked at; also what a stream of it holds
SPOOL_BYTES = 8 << 20  # of a file inside an archive: held in memory up to here, then on disk


class ChunkReader(io.RawIOBase):
    """An iterator of bytes as a raw stream that fills what it is asked to fill."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._begun = False
        self._error: DataError | None = None

    def readable(self) -> bool:
        """Return True: that is all it is for."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, short only at the end, or where an error is raised by the next call."""
        if self._error is not None:
            raise self._error
        n_filled = 0
        while n_filled < len(buffer):
            if not self._rest:
                try:
                    chunk = next(self._chunks, b"")
                except DataError as error:
                    if not n_filled or not self._begun:  # what it is, half a head does not tell
                        raise
                    self._error = error  # what came before it is good
                    break
                if not chunk:
                    break
                self._rest = memoryview(chunk)
            part = self._rest[: len(buffer) - n_filled]
            buffer[n_filled : n_filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            n_filled += len(part)
        self._begun = True
        return n_filled


class Span(io.RawIOBase):
    """The next ``n_bytes`` of a stream as a stream of its own."""

    def __init__(self, name: str, stream: Any, n_bytes: int) -> None:
        self._name = name
        self._stream = stream
        self._n_left = n_bytes

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the span goes; DataError where the stream ends before."""
        n_wanted = min(len(buffer), self._n_left)
        n_read: int = self._stream.readinto(memoryview(buffer)[:n_wanted])
        if n_wanted and not n_read:
            raise DataError(
                f"{self._name}: cut short inside its archive, {self._n_left:,} bytes before its "
                "end. Fetch it again."
            )
        self._n_left -= n_read
        return n_read


@contextmanager
def seekable(stream: Stream) -> Iterator[Any]:
    """Give the stream itself, or a copy of one that only streams by."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        shutil.copyfileobj(stream, spool, SPOOL_BYTES)
        yield spool
