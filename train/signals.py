"""Stopping on request: what a signal means before, during and after training.

Before there is a run, a signal ends the process at once: nothing is lost. From then on the first
one is only remembered: the loop finishes its step, saves, and ends with 128 + the signal's number.
A second one kills at once; whatever it interrupts, files under their final names stay whole.

    SIGINT   130   Ctrl-C
    SIGTERM  143   kill, systemd, Kubernetes
    SIGUSR1  138   Slurm's --signal=USR1@90: 90 seconds before the time limit
"""

import signal
import sys
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers the signal that asked to stop; a context manager, entered before all else."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._may_wait = False  # until a run has begun there is nothing to finish

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def wait_for_steps(self) -> None:
        """Remember signals from here on, in place of ending at once."""
        self._may_wait = True

    def requested(self) -> int | None:
        """Return the signal that asked to stop, or None: asked once a step, for all processes."""
        return self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number  # also where the exit below is swallowed, as in a finalizer
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
        if not self._may_wait:
            sys.exit(128 + number)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
