"""The time that a run uses: all that passes, but while its process is held it stands still."""

import math
import time


class Clock:
    """Counts the seconds since it was made, lap by lap: none is lost between two of them.

    Ctrl-Z and SIGSTOP hold a process without a word; SIGCONT, as it goes on, tells that it was
    held, not for how long: such a lap counts as what it was expected to take. While the machine
    itself sleeps, its monotonic clock stands still too.
    """

    def __init__(self) -> None:
        self.start = self._lap = time.perf_counter()
        self._was_held = False

    def note_held(self, *_: object) -> None:
        """Note that the process was held in this lap: the handler of SIGCONT."""
        self._was_held = True

    def lap(self, expected_s: float = math.inf) -> float:
        """Return the seconds since the last call; ``expected_s`` at most if it was held."""
        now = time.perf_counter()
        dt_s, self._lap = now - self._lap, now
        if self._was_held:
            dt_s, self._was_held = min(dt_s, expected_s), False
        return dt_s
