"""Training windows; where each begins (batches/windows.py) is a pure function of (seed, step).

So a resumed run needs only its step to go on with the same data, and neither the micro-batch nor
evaluations change the order. Being known beforehand, they can be cut in the background.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.dataset import Ids


class Batch(NamedTuple):
    """What a rank learns from in one update; some of its rows are a micro-batch."""

    # int64: (B, T + 1) ids; of conversations (B, 3, T) ids, targets, starts, of pairs (B, 2, 3, T)
    rows: Tensor
    n_learned: float  # targets of the whole update that are learned, a rank: for the mean loss


def model_inputs(rows: Tensor) -> tuple[Tensor, ...]:
    """Return a batch's x and y (B, T), y moved on by a token, and of conversations their starts."""
    return (rows[:, :-1], rows[:, 1:]) if rows.dim() == 2 else rows.unbind(1)


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of the random numbers inside update ``step``, on a rank."""
    # counter word 2 set: apart from the numbers that place the windows
    return int(np.random.Philox(key=seed, counter=[0, rank, 1, step]).random_raw()) >> 1


def cut_windows(ids: Ids, starts: npt.NDArray[np.int64], block_size: int) -> Tensor:
    """Return the windows at ``starts``: int64 of shape (B, T + 1)."""
    # a plain array: slices of a memmap cost ten times as much, and numpy copies row by row
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), block_size + 1)
    return torch.from_numpy(windows[starts].astype(np.int64))
