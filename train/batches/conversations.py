"""Conversations packed into rows: which stand together is settled once, for the whole run.

    train.bin, .idx, .mask -> conversations, the longest first, each into the row it fills best
                           -> rows of (ids, targets, starts), end to end, padded

Nothing of a conversation is cut off, and none sees another (common/models/packing.py). Only the
rows' order differs from epoch to epoch.

Source: best-fit decreasing, Ding et al. 2024, section 2 (arXiv:2404.10830).
"""

from bisect import bisect_left, insort

import numpy as np
import torch
from torch import Tensor

from common.chat_format import LEARNED, REJECTED
from common.dataset import DataFolder, Split
from common.errors import DataError
from common.models.loss import IGNORED
from train.batches.windows import EPOCHS, TIES, Positions, shuffled


class Conversations:
    """The conversations of a split, in rows of ``block_size`` tokens."""

    def __init__(self, data: DataFolder, split: Split, block_size: int, seed: int) -> None:
        """Raise DataError where one is longer than a row."""
        self.block_size, self.seed = block_size, seed
        # plain arrays: slices of a memmap cost ten times as much
        self.ids, self.mask = np.asarray(data.tokens(split)), np.asarray(data.mask(split))
        self._ends = conversation_ends(data, split)  # (n_docs, 1, 2), of pairs (n_docs, 2, 2)
        lengths = np.diff(self._ends).max(axis=(1, 2))  # in a row: the last id is a target only
        if len(lengths) and (longest := int(lengths.max())) > block_size:
            raise DataError(
                f"{data.path / split}.bin: a conversation of it takes {longest:,} tokens, but the "
                f"context holds {block_size:,}. Prepare them again, the long ones cut: python -m "
                f"prepare chats FILE --context {block_size}. Or pass --block-size {longest}, where "
                "positions are not learned."
            )
        order = shuffled(len(lengths), seed, TIES, 0)
        order = order[lengths[order] > 0]
        order = order[np.argsort(-lengths[order], kind="stable")]
        row_of = best_fit(lengths[order], block_size)
        self._members = order[np.argsort(row_of, kind="stable")]  # of row 0, of row 1 ...
        self._row_bounds = np.concatenate(([0], np.cumsum(np.bincount(row_of))))
        self.n_rows = len(self._row_bounds) - 1
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def in_turn(self, first: int, n: int) -> Positions:
        """Return ``n`` of the numbers of rows from the one that is ``first`` in a run on.

        In each epoch every row has its turn once, in an order of the epoch's own.
        """
        found = np.zeros(0, np.int64)
        while len(found) < n:
            epoch, at = divmod(first + len(found), self.n_rows)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, shuffled(self.n_rows, self.seed, EPOCHS, epoch)
            found = np.concatenate((found, self._order[at : at + n - len(found)]))
        return found

    def rows(self, numbers: Positions) -> Tensor:
        """Return int64 (B, 3, T) of the rows with these numbers: ids, targets and starts.

        Of pairs (B, 2, 3, T): the chosen ones, and the rejected, each where its chosen one begins.
        """
        n_sides = self._ends.shape[1]
        out = np.zeros((len(numbers), n_sides, 3, self.block_size), np.int64)
        out[:, :, 1] = IGNORED
        for row, number in zip(out, numbers, strict=True):
            at = 0
            for one in self._members[self._row_bounds[number] : self._row_bounds[number + 1]]:
                ends = self._ends[one]  # (n_sides, 2)
                for (x, y, _), (first, last) in zip(row, ends, strict=True):
                    end = at + last - first
                    x[at:end] = self.ids[first:last]
                    learned = (self.mask[first + 1 : last + 1] & LEARNED) != 0
                    y[at:end][learned] = self.ids[first + 1 : last + 1][learned]
                row[:, 2, at:] = at
                at += int(np.diff(ends).max())
            row[:, 2, at:] = at
        return torch.from_numpy(out if n_sides > 1 else out[:, 0])


def best_fit(lengths: Positions, size: int) -> Positions:
    """Return into which row each of ``lengths`` goes: the fullest that has room, or a new one."""
    row_of = np.empty(len(lengths), np.int64)
    rows: list[list[int]] = [[] for _ in range(size + 1)]  # by the room they have left
    rooms: list[int] = []  # those of which there are rows, in order
    n_rows = 0
    for i, length in enumerate(lengths.tolist()):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row, n_rows = size, n_rows, n_rows + 1
        else:
            room = rooms[place]
            row = rows[room].pop()
            if not rows[room]:
                del rooms[place]
        row_of[i] = row
        left = room - length
        if not rows[left]:
            insort(rooms, left)
        rows[left].append(row)
    return row_of


def conversation_ends(data: DataFolder, split: Split) -> Positions:
    """Return (n_docs, 1, 2): where the first and the last id of each conversation are.

    Of pairs (n_docs, 2, 2): those of the chosen conversation, and of the rejected.
    """
    bounds = data.document_bounds(split)
    first, last = bounds[:-1], bounds[1:] - 2  # behind it is end-of-text
    if not data.has_pairs:
        return np.stack((first, last), axis=1)[:, None]
    is_rejected = (data.mask(split) & REJECTED) != 0
    middle = last - np.add.reduceat(is_rejected, first, dtype=np.int64)
    return np.stack((first, middle, middle + 1, last), axis=1).reshape(-1, 2, 2)
