"""Run an iterator of bytes in a process of its own, ahead of the one that uses them.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this. The
process is forked, since it goes on in the middle of an iterator; it runs decoders and nothing else.
"""

import os
import signal
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import BinaryIO

from common.errors import DataError
from prepare.streams import FileProgress

FRAME = struct.Struct("<BQQ")  # kind, bytes that follow, bytes read from disk until then
PART, END, DAMAGED, UNREADABLE, FAILED = range(5)  # kinds
GATHER_BYTES = 1 << 20  # smaller chunks are joined: each way through the pipe costs time
PIPE_BYTES = 1 << 20


_forbidden = False


def forbid() -> None:
    """Let ``ahead`` begin no process from now on: this one is a worker, each core has one."""
    global _forbidden
    _forbidden = True


def ahead(chunks: Iterator[bytes], progress: FileProgress) -> Generator[bytes, None, None]:
    """Yield the same bytes, made by a process of its own, which ends with this generator.

    ``progress`` is told there what is read, and here again. Content of less than GATHER_BYTES, such
    as that of one small file of many, needs no process.

    Raises: what ``chunks`` raises; DataError when the process is killed.
    """
    if _forbidden:
        yield from chunks
        return
    parts = _gathered(chunks)
    first = next(parts, b"")
    if first:
        yield first
    if len(first) < GATHER_BYTES:
        yield from parts  # nothing, or the error that came then
        return
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _make(parts, progress, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            yield from _parts_from(pipe, progress)
    finally:
        os.kill(process, signal.SIGKILL)  # it may be at work still, where no more is wanted
        os.waitpid(process, 0)


def _make(parts: Iterator[bytes], progress: FileProgress, writer: int) -> None:
    """Write the parts into the pipe and end this process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        progress.mute()
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            _set_size(pipe)
            kind, text = END, ""
            try:
                for part in parts:
                    _write(pipe, FRAME.pack(PART, len(part), progress.n_read))
                    _write(pipe, part)
            except DataError as error:
                kind, text = DAMAGED, error.message
            except OSError as error:
                kind, text = UNREADABLE, error.strerror or str(error)
            except Exception as error:
                kind, text = FAILED, repr(error)
            content = text.encode("utf-8", "replace")
            _write(pipe, FRAME.pack(kind, len(content), progress.n_read) + content)
    finally:
        os._exit(0)  # nothing that belongs to the other process is to be flushed or cleaned up


def _write(pipe: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]


def _set_size(pipe: BinaryIO) -> None:
    import fcntl

    with suppress(AttributeError, OSError):  # Linux only, and up to a limit
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _parts_from(pipe: BinaryIO, progress: FileProgress) -> Iterator[bytes]:
    while True:
        header = pipe.read(FRAME.size)
        if len(header) < FRAME.size:
            break
        kind, n_bytes, n_read = FRAME.unpack(header)
        progress.catch_up(n_read)
        content = pipe.read(n_bytes)
        if len(content) < n_bytes:
            break
        if kind == END:
            return
        if kind != PART:
            text = content.decode("utf-8")
            raise {DAMAGED: DataError, UNREADABLE: OSError, FAILED: RuntimeError}[kind](text)
        yield content
    raise DataError(
        "The process that decompresses was killed, or there was no memory left for it. Run the "
        "same command again: it goes on from the parts that are finished."
    )


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    n_held = 0
    try:
        for chunk in chunks:
            held.append(chunk)
            n_held += len(chunk)
            if n_held >= GATHER_BYTES:
                yield b"".join(held)
                held, n_held = [], 0
    except DataError:
        if held:
            yield b"".join(held)  # what came before the damage is good
        raise
    if held:
        yield b"".join(held)
