"""Read a source in a process of its own, ahead of the one that uses what it makes.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this. The
pieces come in memory that both share, slot after slot, which takes a third of a pipe's time:

    n lengths | n chunk_ends | the bytes of n pieces, in a row

Through a pipe come a kind, the slot, the bytes read so far and n, and at the end what ended it;
back through it go the numbers of slots that are free again, several at a time.
"""

import json
import mmap
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from common.errors import DataError
from prepare.forked import ForkedProcess, can_fork, forked
from prepare.readers.chunks import MAX_CHUNK_BYTES, Chunk, ChunkEnd
from prepare.sources.discover import ReadCounter
from prepare.stats import Stats, UnreadableError

HEADER = struct.Struct("<BBQQ")
PIECES, END, DAMAGED, UNREADABLE, NOT_READ, FAILED = range(6)  # kinds; all but the first are ends
ERRORS = {DAMAGED: DataError, UNREADABLE: UnreadableError, NOT_READ: OSError, FAILED: RuntimeError}
CHUNK_ENDS = list(ChunkEnd)
# Pieces are handed over together: each time costs some.
GATHER_BYTES = 1 << 20
GATHER_PIECES = 1 << 14
SLOT_BYTES = GATHER_BYTES + MAX_CHUNK_BYTES + 9 * GATHER_PIECES
N_SLOTS = 16  # what is read while a vocabulary is loaded and the encoder made
TOLD_FREE = 8  # together: to wake a process that waits takes up to 0.3 ms on a virtual machine


def ahead(pieces: Iterator[Chunk], counter: ReadCounter, stats: Stats) -> Generator[Chunk]:
    """Yield the same pieces, made by a process of its own, which ends with this generator.

    None of them is longer than MAX_CHUNK_BYTES.
    ``counter`` counts there what is read, and here again; ``stats`` are here when all is made.

    Raises: what ``pieces`` raises; ForkedProcessDiedError when the process is killed.
    """
    if not can_fork():
        yield from pieces
        return
    with making(pieces, counter, stats) as made:
        yield from made


@contextmanager
def making(
    pieces: Iterator[Chunk], counter: ReadCounter, stats: Stats
) -> Iterator[Iterator[Chunk]]:
    """Begin at once to make what ``ahead`` yields, and give that; at the end here it stops."""
    with (
        mmap.mmap(-1, N_SLOTS * SLOT_BYTES) as slots,
        forked(partial(_make, pieces, counter, stats, slots)) as maker,
    ):
        yield _made(slots, maker, counter, stats)


def _made(
    slots: mmap.mmap, maker: ForkedProcess, counter: ReadCounter, stats: Stats
) -> Iterator[Chunk]:
    free = bytearray()
    while True:
        message = maker.recv()
        kind, slot, n_read, n_pieces = HEADER.unpack_from(message)
        counter(n_read - counter.n_read)
        if kind != PIECES:
            break
        yield from _pieces_in(slots, slot * SLOT_BYTES, n_pieces)
        free.append(slot)
        if len(free) == TOLD_FREE:
            maker.send(bytes(free))
            free.clear()
    text = message[HEADER.size :].decode("utf-8")
    if kind != END:
        raise ERRORS[kind](text)
    vars(stats).update(vars(Stats.from_json(json.loads(text))))


def _make(
    pieces: Iterator[Chunk], counter: ReadCounter, stats: Stats, slots: mmap.mmap, there: Connection
) -> None:
    """Put the pieces into the slots."""
    counter.detach()
    free = list(range(N_SLOTS))
    try:
        for gathered in _gathered(pieces):
            while not free or there.poll():
                free += there.recv_bytes()
            slot = free.pop()  # that which was free last is still in the caches
            _fill(slots, slot * SLOT_BYTES, gathered)
            there.send_bytes(HEADER.pack(PIECES, slot, counter.n_read, len(gathered)))
    except UnreadableError as error:
        kind, text = UNREADABLE, error.message
    except DataError as error:
        kind, text = DAMAGED, error.message
    except OSError as error:
        kind, text = NOT_READ, error.strerror or str(error)
    except Exception as error:
        kind, text = FAILED, repr(error)
    else:
        kind, text = END, json.dumps(stats.as_json())
    there.send_bytes(HEADER.pack(kind, 0, counter.n_read, 0) + text.encode("utf-8", "replace"))


def _fill(slots: mmap.mmap, start: int, pieces: list[Chunk]) -> None:
    lengths = np.array([len(text) for text, _ in pieces], "<u8").tobytes()
    chunk_ends = bytes(CHUNK_ENDS.index(chunk_end) for _, chunk_end in pieces)
    assert sum(len(text) for text, _ in pieces) < GATHER_BYTES + MAX_CHUNK_BYTES  # they fit
    for part in (lengths, chunk_ends, *(text for text, _ in pieces)):
        slots[start : start + len(part)] = part
        start += len(part)


def _pieces_in(slots: mmap.mmap, start: int, n_pieces: int) -> Iterator[Chunk]:
    lengths = np.frombuffer(slots, "<u8", n_pieces, start).tolist()
    chunk_ends = slots[start + 8 * n_pieces : start + 9 * n_pieces]
    start += 9 * n_pieces
    for length, chunk_end in zip(lengths, chunk_ends, strict=True):
        yield slots[start : start + length], CHUNK_ENDS[chunk_end]
        start += length


def _gathered(pieces: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    held: list[Chunk] = []
    n_held = 0
    try:
        for piece in pieces:
            held.append(piece)
            n_held += len(piece[0])
            if n_held >= GATHER_BYTES or len(held) >= GATHER_PIECES:
                yield held
                held, n_held = [], 0
    except (DataError, OSError):
        if held:
            yield held  # what came before the damage is good
        raise
    if held:
        yield held
