"""Training windows: where each begins is a pure function of (seed, step).

So a resumed run needs only its step to go on with the same data, and neither the micro-batch nor
evaluations change the order. Being known beforehand, they can be cut in the background.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.dataset import Ids

Item = TypeVar("Item")


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


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of the random numbers inside update ``step``, on a rank."""
    # counter word 2 set: apart from the numbers that place the windows
    return int(np.random.Philox(key=seed, counter=[0, rank, 1, step]).random_raw()) >> 1


def cut_windows(ids: Ids, starts: npt.NDArray[np.int64], block_size: int) -> Tensor:
    """Return the windows at ``starts``: int64 of shape (B, T + 1)."""
    # a plain array: slices of a memmap cost ten times as much, and numpy copies row by row
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), block_size + 1)
    return torch.from_numpy(windows[starts].astype(np.int64))


class Prefetcher(Generic[Item]):
    """Makes the batches of the next steps in a thread, while the current step computes.

    A batch must be a function of the step alone: nothing then depends on how far ahead the thread
    is, and a run may jump to another step.
    """

    def __init__(self, make: Callable[[int], Item], n_ahead: int = 2) -> None:
        """Make at most ``n_ahead`` steps beforehand; with 0, each one in get()."""
        self._make, self._n_ahead = make, n_ahead
        self._thread = ThreadPoolExecutor(1, "windows") if n_ahead else None
        self._pending: dict[int, Future[Item]] = {}

    def get(self, step: int) -> Item:
        """Return the batch of ``step``; raise what making it raised."""
        if self._thread is None:
            return self._make(step)
        wanted = range(step, step + 1 + self._n_ahead)
        for other in self._pending.keys() - set(wanted):
            self._pending.pop(other).cancel()
        for each in wanted:
            if each not in self._pending:
                self._pending[each] = self._thread.submit(self._make, each)
        return self._pending.pop(step).result()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
