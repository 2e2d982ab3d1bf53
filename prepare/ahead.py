"""Read a source in a process of its own, ahead of the one that uses what it makes.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this. The
process is forked, since it goes on with an iterator; it reads and nothing else. Through a pipe come

    kind, bytes read so far, n, bytes | n lengths | n fates | the bytes of n pieces, in a row
"""

import json
import os
import signal
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from io import FileIO
from typing import BinaryIO

import numpy as np

from common.errors import DataError
from common.files import write_all
from prepare.findings import Findings, UnreadableError
from prepare.pieces import Fate, Piece
from prepare.sources import Tally

FRAME = struct.Struct("<BQQQ")
PIECES, END, DAMAGED, UNREADABLE, NOT_READ, FAILED = range(6)  # kinds; all but the first are ends
ERRORS = {DAMAGED: DataError, UNREADABLE: UnreadableError, NOT_READ: OSError, FAILED: RuntimeError}
FATES = list(Fate)
GATHER_BYTES = 1 << 20  # pieces are sent together: each way through the pipe costs time
PIPE_BYTES = 1 << 20


_forbidden = False


def forbid() -> None:
    """Let ``ahead`` begin no process from now on: this one is a worker, each core has one."""
    global _forbidden
    _forbidden = True


def ahead(pieces: Iterator[Piece], tally: Tally, findings: Findings) -> Generator[Piece]:
    """Yield the same pieces, made by a process of its own, which ends with this generator.

    ``tally`` counts there what is read, and here again; ``findings`` are here when all is made.

    Raises: what ``pieces`` raises; DataError when the process is killed.
    """
    if _forbidden:
        yield from pieces
        return
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _make(pieces, tally, findings, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            kind, content = _next(pipe, tally)
            while kind == PIECES:
                yield from content
                kind, content = _next(pipe, tally)
    finally:
        os.kill(process, signal.SIGKILL)  # it may be at work still, where no more is wanted
        os.waitpid(process, 0)
    ((text, _),) = content
    if kind != END:
        raise ERRORS[kind](text.decode("utf-8"))
    vars(findings).update(vars(Findings.from_json(json.loads(text))))


def _make(pieces: Iterator[Piece], tally: Tally, findings: Findings, writer: int) -> None:
    """Write the pieces into the pipe and end this process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tally.mute()
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            _set_size(pipe)
            try:
                for gathered in _gathered(pieces):
                    _write(pipe, PIECES, gathered, tally)
            except UnreadableError as error:
                kind, text = UNREADABLE, error.message
            except DataError as error:
                kind, text = DAMAGED, error.message
            except OSError as error:
                kind, text = NOT_READ, error.strerror or str(error)
            except Exception as error:
                kind, text = FAILED, repr(error)
            else:
                kind, text = END, json.dumps(findings.as_json())
            _write(pipe, kind, [(text.encode("utf-8", "replace"), Fate.END)], tally)
    finally:
        os._exit(0)  # nothing that belongs to the other process is to be flushed or cleaned up


def _write(pipe: FileIO, kind: int, pieces: list[Piece], tally: Tally) -> None:
    lengths = np.array([len(text) for text, _ in pieces], "<u8")
    fates = bytes(FATES.index(fate) for _, fate in pieces)
    content = b"".join([lengths.tobytes(), fates, *(text for text, _ in pieces)])
    write_all(pipe, FRAME.pack(kind, tally.n_read, len(pieces), len(content)))
    write_all(pipe, content)


def _set_size(pipe: FileIO) -> None:
    import fcntl

    with suppress(AttributeError, OSError):  # Linux only, and up to a limit
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _next(pipe: BinaryIO, tally: Tally) -> tuple[int, Iterator[Piece]]:
    header = pipe.read(FRAME.size)
    if len(header) == FRAME.size:
        kind, n_read, n_pieces, n_bytes = FRAME.unpack(header)
        content = pipe.read(n_bytes)
        if len(content) == n_bytes:
            tally(n_read - tally.n_read)
            return kind, _pieces_in(content, n_pieces)
    raise DataError(
        "The process that reads the sources was killed, or there was no memory left for it. Run "
        "the same command again: it goes on from the parts that are finished."
    )


def _pieces_in(content: bytes, n_pieces: int) -> Iterator[Piece]:
    start = 9 * n_pieces
    lengths = np.frombuffer(content, "<u8", n_pieces).tolist()
    for length, fate in zip(lengths, content[8 * n_pieces : start], strict=True):
        yield content[start : start + length], FATES[fate]
        start += length


def _gathered(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    held: list[Piece] = []
    n_held = 0
    try:
        for piece in pieces:
            held.append(piece)
            n_held += len(piece[0])
            if n_held >= GATHER_BYTES:
                yield held
                held, n_held = [], 0
    except DataError:
        if held:
            yield held  # what came before the damage is good
        raise
    if held:
        yield held
