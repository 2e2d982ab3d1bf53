"""Read a source in a process of its own, ahead of the one that uses what it makes.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this. The
pieces come in memory that both share, slot after slot, which takes a third of a pipe's time:

    n lengths | n fates | the bytes of n pieces, in a row

Through a pipe come a kind, the bytes read so far and n, and at the end what ended it; back through
it goes a word for each slot that is free again.
"""

import json
import mmap
import struct
from collections.abc import Generator, Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection

import numpy as np

from common.errors import DataError
from prepare.apart import helper, is_allowed
from prepare.findings import Findings, UnreadableError
from prepare.pieces import PIECE_BYTES, Fate, Piece
from prepare.sources import Tally

HEADER = struct.Struct("<BQQ")
PIECES, END, DAMAGED, UNREADABLE, NOT_READ, FAILED = range(6)  # kinds; all but the first are ends
ERRORS = {DAMAGED: DataError, UNREADABLE: UnreadableError, NOT_READ: OSError, FAILED: RuntimeError}
FATES = list(Fate)
# Pieces are handed over together: each time costs some.
GATHER_BYTES = 1 << 20
GATHER_PIECES = 1 << 14
SLOT_BYTES = GATHER_BYTES + PIECE_BYTES + 9 * GATHER_PIECES
N_SLOTS = 3  # one is read, one is full, one is being filled


def ahead(pieces: Iterator[Piece], tally: Tally, findings: Findings) -> Generator[Piece]:
    """Yield the same pieces, made by a process of its own, which ends with this generator.

    None of them is longer than PIECE_BYTES.
    ``tally`` counts there what is read, and here again; ``findings`` are here when all is made.

    Raises: what ``pieces`` raises; HelperEndedError when the process is killed.
    """
    if not is_allowed():
        yield from pieces
        return
    with (
        mmap.mmap(-1, N_SLOTS * SLOT_BYTES) as slots,
        helper(partial(_make, pieces, tally, findings, slots)) as maker,
    ):
        for number in count():
            message = maker.answer()
            kind, n_read, n_pieces = HEADER.unpack_from(message)
            tally(n_read - tally.n_read)
            if kind != PIECES:
                break
            yield from _pieces_in(slots, _start(number), n_pieces)
            maker.tell(b"free")
    text = message[HEADER.size :].decode("utf-8")
    if kind != END:
        raise ERRORS[kind](text)
    vars(findings).update(vars(Findings.from_json(json.loads(text))))


def _make(
    pieces: Iterator[Piece], tally: Tally, findings: Findings, slots: mmap.mmap, there: Connection
) -> None:
    """Put the pieces into the slots."""
    tally.mute()
    try:
        for number, gathered in enumerate(_gathered(pieces)):
            if number >= N_SLOTS:
                there.recv_bytes()
            _fill(slots, _start(number), gathered)
            there.send_bytes(HEADER.pack(PIECES, tally.n_read, len(gathered)))
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
    there.send_bytes(HEADER.pack(kind, tally.n_read, 0) + text.encode("utf-8", "replace"))


def _start(number: int) -> int:
    return number % N_SLOTS * SLOT_BYTES


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
