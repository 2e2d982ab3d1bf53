"""Training windows: where each begins is a pure function of (seed, step).

So a resumed run needs only its step to go on with the same data, and neither the micro-batch nor
evaluations change the order.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.tokenfile import Ids


def window_starts(
    seed: int, step: int, n_rows: int, n_tokens: int, block_size: int
) -> npt.NDArray[np.int64]:
    """Return (n_rows,) starts, each with block_size + 1 tokens from there on.

    Drawn by a counter-based generator, raw, so that numpy's version does not matter either.
    Source: Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    # the step is the counter's highest word: no run draws enough to reach the next step's
    raw = np.random.Philox(key=seed, counter=[0, 0, 0, step]).random_raw(n_rows)
    return (raw % np.uint64(n_tokens - block_size)).astype(np.int64)


def read_rows(ids: Ids, starts: npt.NDArray[np.int64], block_size: int) -> tuple[Tensor, Tensor]:
    """Return (x, y), each int64 of shape (B, T), cut from ``ids``; y is x moved on by one."""
    rows = np.stack([ids[start : start + block_size + 1] for start in starts]).astype(np.int64)
    both = torch.from_numpy(rows)  # (B, T + 1)
    return both[:, :-1], both[:, 1:]


def micro_batch_rows(n_rows: int, most: int) -> int:
    """Return the largest number of rows, at most ``most``, that divides ``n_rows`` evenly."""
    return max(rows for rows in range(1, min(n_rows, max(most, 1)) + 1) if n_rows % rows == 0)
