"""Batches of the next steps, made in the background."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


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
