"""Read a source in a process of its own, ahead of the one that uses what it makes.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this. The
pieces come in memory that both share, slot after slot, which takes a third of a pipe's time:

    n lengths | n fates | the bytes of n pieces, in a row

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
from prepare.readers.chunks import PIECE_BYTES, Fate, Piece
from prepare.sources.discover import Tally
from prepare.stats import Findings, UnreadableError
from prepare.workers.forked import Helper, helper, is_allowed

HEADER = struct.Struct("<BBQQ")
PIECES, END, DAMAGED, UNREADABLE, NOT_READ, FAILED = range(6)  # kinds; all but the first are ends
ERRORS = {DAMAGED: DataError, UNREADABLE: UnreadableError, NOT_READ: OSError, FAILED: RuntimeError}
FATES = list(Fate)
# Pieces are handed over together: each time costs some.
GATHER_BYTES = 1 << 20
GATHER_PIECES = 1 << 14
SLOT_BYTES = GATHER_BYTES + PIECE_BYTES + 9 * GATHER_PIECES
N_SLOTS = 16  # what is read while a vocabulary is loaded and the encoder made
TOLD_FREE = 8  # together: to wake a process that waits takes up to 0.3 ms on a virtual machine


def ahead(pieces: Iterator[Piece], tally: Tally, findings: Findings) -> Generator[Piece]:
    """Yield the same pieces, made by a process of its own, which ends with this generator.

    None of them is longer than PIECE_BYTES.
    ``tally`` counts there what is read, and here again; ``findings`` are here when all is made.

    Raises: what ``pieces`` raises; HelperEndedError when the process is killed.
    """
    if not is_allowed():
        yield from pieces
        return
    with making(pieces, tally, findings) as made:
        yield from made


@contextmanager
def making(pieces: Iterator[Piece], tally: Tally, findings: Findings) -> Iterator[Iterator[Piece]]:
    """Begin at once to make what ``ahead`` yields, and give that; at the end here it stops."""
    with (
        mmap.mmap(-1, N_SLOTS * SLOT_BYTES) as slots,
        helper(partial(_make, pieces, tally, findings, slots)) as maker,
    ):
        yield _made(slots, maker, tally, findings)


def _made(slots: mmap.mmap, maker: Helper, tally: Tally, findings: Findings) -> Iterator[Piece]:
    free = bytearray()
    while True:
        message = maker.answer()
        kind, slot, n_read, n_pieces = HEADER.unpack_from(message)
        tally(n_read - tally.n_read)
        if kind != PIECES:
            break
        yield from _pieces_in(slots, slot * SLOT_BYTES, n_pieces)
        free.append(slot)
        if len(free) == TOLD_FREE:
            maker.tell(bytes(free))
            free.clear()
    text = message[HEADER.size :].decode("utf-8")
    if kind != END:
        raise ERRORS[kind](text)
    vars(findings).update(vars(Findings.from_json(json.loads(text))))


def _make(
    pieces: Iterator[Piece], tally: Tally, findings: Findings, slots: mmap.mmap, there: Connection
) -> None:
    """Put the pieces into the slots."""
    tally.mute()
    free = list(range(N_SLOTS))
    try:
        for gathered in _gathered(pieces):
            while not free or there.poll():
                free += there.recv_bytes()
            slot = free.pop()  # that which was free last is still in the caches
            _fill(slots, slot * SLOT_BYTES, gathered)
            there.send_bytes(HEADER.pack(PIECES, slot, tally.n_read, len(gathered)))
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
    there.send_bytes(HEADER.pack(kind, 0, tally.n_read, 0) + text.encode("utf-8", "replace"))


def _fill(slots: mmap.mmap, start: int, pieces: list[Piece]) -> None:
    lengths = np.array([len(text) for text, _ in pieces], "<u8").tobytes()
    fates = bytes(FATES.index(fate) for _, fate in pieces)
    assert sum(len(text) for text, _ in pieces) < GATHER_BYTES + PIECE_BYTES  # they fit
    for part in (lengths, fates, *(text for text, _ in pieces)):
        slots[start : start + len(part)] = part
        start += len(part)


def _pieces_in(slots: mmap.mmap, start: int, n_pieces: int) -> Iterator[Piece]:
    lengths = np.frombuffer(slots, "<u8", n_pieces, start).tolist()
    fates = slots[start + 8 * n_pieces : start + 9 * n_pieces]
    start += 9 * n_pieces
    for length, fate in zip(lengths, fates, strict=True):
        yield slots[start : start + length], FATES[fate]
        start += length


def _gathered(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    held: list[Piece] = []
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
