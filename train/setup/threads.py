"""How many threads an update takes: as many as are quickest now, on a machine that others use too.

OpenMP's threads meet at the end of each operation. Where another process keeps a core busy, one of
them waits for it, and the others wait for that one: beside one busy process on two cores, two
threads were 50 times as slow as one. And a small network is as quick on one thread in any case. So
the time of updates decides: where they take longer than they did, fewer threads are tried, and
from time to time more; whichever is quicker stays. Trials take a fiftieth of the time at most.

Weights, gradients and losses of the modern networks are the same for any number, to the last bit.
"""

import math
from collections import deque
from statistics import median
from typing import Final

import torch

N_TIMES = 5  # of updates, whose median is compared
N_TRIAL = 3  # updates with another number; the first wakes or makes threads, and does not count
LONG_S = 1.0  # updates of so long together are enough of them, be it one
SLOWER = 1.5  # so much longer than it was: the machine has changed
QUICKER = 0.95  # another number stays where it takes at most this share of the time
TRIAL_SHARE = 0.02  # of the time
MOST_WAIT_S = 30.0  # for another trial, where one takes less than a fiftieth of this


class ThreadTuner:
    """Sets the number of torch's threads by the times of updates."""

    def __init__(self, n_most: int, n: int) -> None:
        """Begin with ``n`` threads."""
        self.n_most: Final = n_most
        self._times = deque[float](maxlen=N_TIMES)  # with the number of now
        self._usual_s = math.inf  # what an update took when the number was chosen, or less
        self._elapsed_s = 0.0
        self._next_trial_s = 0.0 if n == n_most else MOST_WAIT_S  # fewer were tried before
        self._apart = 1 / TRIAL_SHARE  # trials, in times of what one takes
        self._before: tuple[int, float] | None = None  # in a trial: the number and time before it
        self._tried_more = True
        self.set(n)

    def set(self, n: int) -> None:
        """Take ``n`` threads from here on, at most all there are."""
        self.n = max(1, min(n, self.n_most))
        torch.set_num_threads(self.n)
        self._times.clear()

    def add(self, dt_s: float) -> None:
        """Take note of an update; choose the number of threads of the next."""
        self._times.append(dt_s)
        self._elapsed_s += dt_s
        if self._before is not None:
            self._end_trial(*self._before)
        elif self._are_enough(N_TIMES) and self.n_most > 1:
            now_s = median(self._times)
            self._usual_s = min(self._usual_s, now_s)
            is_slow = now_s > SLOWER * self._usual_s
            if is_slow or self._elapsed_s >= self._next_trial_s:
                self._before = self.n, now_s
                fewer = self.n == self.n_most or (self.n > 1 and (is_slow or self._tried_more))
                self._tried_more = not fewer
                self.set(self.n // 2 if fewer else 2 * self.n)

    def _are_enough(self, n_times: int) -> bool:
        return len(self._times) >= n_times or sum(self._times) >= LONG_S

    def _end_trial(self, n_before: int, before_s: float) -> None:
        spent_s = sum(self._times)
        if not self._are_enough(N_TRIAL) and spent_s < N_TRIAL * SLOWER * before_s:
            return
        now_s = min([*self._times][1:] or self._times)
        self._before = None
        if now_s <= QUICKER * before_s:
            self._usual_s, self._apart = now_s, 1 / TRIAL_SHARE
        else:
            self._usual_s = before_s
            self._apart *= 2  # where nothing changes, trials are fewer and fewer
            self.set(n_before)
        wait_s = max(spent_s / TRIAL_SHARE, min(MOST_WAIT_S, self._apart * spent_s))
        self._next_trial_s = self._elapsed_s + wait_s
