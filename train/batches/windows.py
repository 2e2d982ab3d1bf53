"""Where the windows of a text begin: in each epoch all of them once, in an order of its own.

    text     |.....|-----|-----|-----|-----|--|    one epoch: from an offset on, end to end
             |..|-----|-----|-----|-----|-----|    the next one: another offset, another order

So each token is read once an epoch, but for fewer than two windows at the ends. Which window has
its turn when is a pure function of the seed and of how many came before.

Source: Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

# Words of the counter, beside those of dropout (train/data.py)
DRAWS, TIES, EPOCHS, OFFSETS, WINDOWS = 0, 2, 3, 4, 5


def window_starts(seed: int, first: int, n_rows: int, n_tokens: int, block_size: int) -> Positions:
    """Return (n_rows,) starts of block_size + 1 tokens each, from a run's window ``first`` on."""
    n_windows = max(1, n_tokens // block_size - 1)
    n_offsets = n_tokens - n_windows * block_size  # the last: its target is the text's last token
    starts = np.zeros(0, np.int64)
    while len(starts) < n_rows:
        epoch, at = divmod(first + len(starts), n_windows)
        raw = np.random.Philox(key=seed, counter=[0, 0, OFFSETS, epoch]).random_raw()
        numbers = _order(n_windows, seed, epoch)[at : at + n_rows - len(starts)]
        own = int(raw) % n_offsets + block_size * numbers.astype(np.int64)
        starts = np.concatenate((starts, own))
    return starts


@lru_cache(maxsize=1)
def _order(n_windows: int, seed: int, epoch: int) -> npt.NDArray[np.uint32]:
    """Return the windows of an epoch in their order: of a billion tokens, in 128 each, 31 MB.

    While it is made it takes 156 MB more.
    """
    return shuffled(n_windows, seed, WINDOWS, epoch).astype(np.uint32)


def shuffled(n: int, seed: int, use: int, number: int) -> Positions:
    """Return a permutation of range(n); drawn raw, so that numpy's version does not matter."""
    raw = np.random.Philox(key=seed, counter=[0, 0, use, number]).random_raw(n)
    return np.argsort(raw, kind="stable")


def drawn_starts(seed: int, step: int, n_rows: int, n_tokens: int, block_size: int) -> Positions:
    """Return (n_rows,) starts drawn with replacement, as runs of format 1 have them."""
    # the step is the counter's highest word: no run draws enough to reach the next step's
    raw = np.random.Philox(key=seed, counter=[0, 0, DRAWS, step]).random_raw(n_rows)
    return (raw % np.uint64(n_tokens - block_size)).astype(np.int64)
