"""Stopping on request: what a signal means before, during and after training.

Before there is a run, a signal ends the process at once: nothing is lost. From then on the first
one is only remembered: the loop finishes its step, saves, and ends with 128 + the signal's number.
A second one kills at once; whatever it interrupts, files under their final names stay whole.

    SIGINT   130   Ctrl-C
    SIGTERM  143   kill, systemd, Kubernetes
    SIGUSR1  138   Slurm's --signal=USR1@90: 90 seconds before the time limit
    SIGHUP   129   the terminal or the ssh connection is gone; not heeded under nohup
"""

import signal
import sys
from types import FrameType

from common.errors import IMPORT_TRIES, is_postponed
from train.monitoring.clock import Clock

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Remembers the signal that asked to stop; a context manager, entered before all else."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.clock = Clock()  # SIGCONT is for it
        self._may_wait = False  # until a run has begun there is nothing to finish

    def __enter__(self) -> "StopRequest":
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [n for n in STOPPING if not (is_nohup and n == signal.SIGHUP)]
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        self._previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, self.clock.note_held)
        return self

    def wait_for_steps(self) -> None:
        """Remember signals from here on, in place of ending at once."""
        self._may_wait = True

    def requested(self) -> int | None:
        """Return the signal that asked to stop, or None: asked once a step, for all processes."""
        return self.signal

    def _note(self, number: int, frame: FrameType | None, n_tries: int = IMPORT_TRIES) -> None:
        self.signal = number  # also where the exit below is swallowed, as in a finalizer
        for each in self._previous.keys() - {signal.SIGCONT}:
            # a hangup comes twice, from the terminal and from its shell: that asks for no haste
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        if not self._may_wait and not is_postponed(self._note, number, frame, n_tries):
            sys.exit(128 + number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # where torchrun ends a process for the end of another, it says first what became of it
        if kind is None or not self._may_wait:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
