"""Processes beside this one, that do one thing for it and end with it.

They are forked, since they go on with what is here: an iterator, a vocabulary.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from common.errors import DataError

_forbidden = False


def forbid() -> None:
    """Let no such process begin from now on: this one is a worker, each core has one."""
    global _forbidden
    _forbidden = True


def is_allowed() -> bool:
    """Tell whether ``helper`` may be used."""
    return not _forbidden


class Helper:
    """The way to such a process and back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, message: bytes) -> None:
        """Send it a message."""
        with suppress(OSError):  # it has ended: said where its answer is missing
            self._connection.send_bytes(message)

    def answer(self) -> bytes:
        """Return its next message.

        Raises: DataError when it has ended without one.
        """
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise DataError(
                "A process that helps to read and encode was killed, or there was no memory left "
                "for it. Run the same command again: it goes on from the parts that are finished."
            ) from error


@contextmanager
def helper(work: Callable[[Connection], object]) -> Iterator[Helper]:
    """Fork a process that does ``work``, given its end of a pipe; at the end here it is killed."""
    here, there = Pipe()
    process = os.fork()
    if process == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first decides
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            here.close()
            work(there)
        finally:
            os._exit(0)  # nothing that belongs to the other process is to be flushed or cleaned up
    there.close()
    try:
        with here:
            yield Helper(here)
    finally:
        os.kill(process, signal.SIGKILL)  # it may be at work still, where no more is wanted
        os.waitpid(process, 0)
