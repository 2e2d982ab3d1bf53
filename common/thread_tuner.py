"""How many threads are quickest now, on a machine that others use too.

Threads that compute together meet at the end of each operation. Where another process keeps a core
busy, one of them waits for it, and the others wait for that one: beside one busy process on two
cores, training with two threads was 50 times as slow as with one. And a small network is as quick
on one thread in any case. So time decides: where a step takes longer than it did, fewer threads are
tried, and from time to time more; whichever is quicker stays.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

N_TIMES = 5  # of steps, whose median is compared
N_TRIAL = 3  # steps with another number
LONG_S = 1.0  # steps of so long together are enough of them, be it one
SLOWER = 1.5  # so much longer than it was: the machine has changed
QUICKER = 0.95  # another number stays where it takes at most this share of the time
TRIAL_SHARE = 0.02  # of the time, at most, that trials take
MOST_WAIT_S = 30.0  # for another trial, where one takes less than that share of this


class ThreadTuner:
    """Chooses ``n``, one of several numbers of threads, by the times of equal steps."""

    def __init__(
        self, choices: Sequence[int], n: int | None = None, usual_s: float = math.inf
    ) -> None:
        """Begin with ``n`` threads, by default the most; ``choices`` are in ascending order.

        ``usual_s``: no machine that is free takes longer for a step.
        """
        self.choices = choices
        self._times = deque[float](maxlen=N_TIMES)  # with the number of now
        self._usual_s = usual_s  # what a step took when the number was chosen, or less
        self._elapsed_s = self._slow_trial_s = 0.0
        self._apart = 1 / TRIAL_SHARE  # trials, in times of what one takes
        self._before: tuple[int, float] | None = None  # in a trial: the number and time before it
        self._tried_more = True
        self.set(choices[-1] if n is None else n)
        self._first = self.n
        # at first fewer; with fewer than the most, more were tried before
        self._next_trial_s = 0.0 if self.n == choices[-1] else MOST_WAIT_S

    def set(self, n: int) -> None:
        """Take ``n`` threads from here on, or the nearest number below that is a choice."""
        self.n = max([choice for choice in self.choices if choice <= n], default=self.choices[0])
        self._times.clear()
        self._skipped_s: float | None = None  # the first step with it: it wakes or makes threads

    def add(self, dt_s: float, *, changes_cost: bool = False) -> None:
        """Take note of a step with ``n`` threads; choose ``n`` for the next.

        Where ``changes_cost`` much, the first number is left only on a machine that became slow.
        """
        if len(self.choices) == 1:
            return
        self._elapsed_s += dt_s
        if self._skipped_s is None:
            self._skipped_s = dt_s
            return
        self._times.append(dt_s)
        if self._before is not None:
            self._end_trial(*self._before)
        elif self._are_enough(N_TIMES):
            now_s = median(self._times)
            self._usual_s = min(self._usual_s, now_s)
            is_slow = now_s > SLOWER * self._usual_s and self._elapsed_s >= self._slow_trial_s
            due_s = max(self._next_trial_s, N_TRIAL * now_s / TRIAL_SHARE)
            is_due = self._elapsed_s >= due_s and not (changes_cost and self.n == self._first)
            if is_slow or is_due:
                self._before = self.n, now_s
                self.set(self._other(is_slow=is_slow))

    def _other(self, *, is_slow: bool) -> int:
        """Return the number to try: fewer on a machine that became slow, else by turns."""
        i = self.choices.index(self.n)
        fewer = i == len(self.choices) - 1 or (i > 0 and (is_slow or self._tried_more))
        self._tried_more = not fewer
        return self.choices[i - 1 if fewer else i + 1]

    def _are_enough(self, n_times: int) -> bool:
        return len(self._times) >= n_times or sum(self._times) >= LONG_S

    def _end_trial(self, n_before: int, before_s: float) -> None:
        spent_s = sum(self._times, self._skipped_s or 0.0)
        if not self._are_enough(N_TRIAL) and spent_s < N_TRIAL * SLOWER * before_s:
            return
        now_s = min(self._times)
        self._before = None
        if now_s <= QUICKER * before_s:
            self._usual_s, self._apart = now_s, 1 / TRIAL_SHARE
        else:
            self._usual_s = before_s
            self._apart *= 2  # where nothing changes, trials are fewer and fewer
            self.set(n_before)
        self._slow_trial_s = self._elapsed_s + spent_s / TRIAL_SHARE
        wait_s = max(spent_s / TRIAL_SHARE, min(MOST_WAIT_S, self._apart * spent_s))
        self._next_trial_s = self._elapsed_s + wait_s


def halved(n: int) -> list[int]:
    """Return n, n / 2 ... 1, in ascending order."""
    return sorted({max(1, n >> i) for i in range(n.bit_length())})
