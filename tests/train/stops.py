"""A request to stop that comes at a known moment."""

import signal

from train.signals import StopRequest


class StopAfter(StopRequest):
    """Asks to stop once it was asked so many times, as a signal then would."""

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.left = n_times

    def requested(self) -> int | None:
        self.left -= 1
        if self.left <= 0:
            self.signal = signal.SIGTERM
        return self.signal
