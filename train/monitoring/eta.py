"""How long a run will take yet: its updates, evaluations and saves, each at its own pace."""

import math
from collections import deque
from statistics import fmean

LAST_UPDATES = 100  # enough to even out, few enough to follow a machine that gets busy


class Pace:
    """How long updates took of late; the first of a process, which warms up, is left out."""

    def __init__(self) -> None:
        self._first_s = 0.0
        self._last_s: deque[float] = deque(maxlen=LAST_UPDATES)
        self._n = 0

    def add(self, dt_s: float) -> None:
        """Take note of an update."""
        self._n += 1
        if self._n == 1:
            self._first_s = dt_s
        else:
            self._last_s.append(dt_s)

    @property
    def step_s(self) -> float:
        """Mean time of an update; that of the first while there is no other."""
        return fmean(self._last_s) if self._last_s else self._first_s


def times_left(step: int, max_steps: int, interval: int) -> int:
    """Return how often a multiple of ``interval``, or the last step, comes after ``step``."""
    if step >= max_steps:
        return 0
    return max_steps // interval - step // interval + (max_steps % interval != 0)


def saves_left(step: int, max_steps: int, save_interval: int, eval_interval: int) -> int:
    """Return how many checkpoints are to be written yet: at either interval and at the end."""
    both = math.lcm(save_interval, eval_interval)
    if step >= max_steps:
        return 0
    at_intervals = sum(
        sign * (max_steps // interval - step // interval)
        for sign, interval in ((1, save_interval), (1, eval_interval), (-1, both))
    )
    return at_intervals + (max_steps % save_interval != 0 and max_steps % eval_interval != 0)
