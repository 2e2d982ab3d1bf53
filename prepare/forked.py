"""A process beside this one, that does one thing for it and ends with it.

It is forked, since it goes on with what is here: an iterator, a vocabulary.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from common.errors import UserError

SIGNALS = {signal.SIGINT, signal.SIGTERM}

_disabled = False


class ForkedProcessDiedError(UserError):
    """Such a process ended before its work was done: no fault of what it worked on."""


def disable_fork() -> None:
    """Let no such process begin from now on.

    This one is a worker, and each core has one; or it has threads, which no fork may meet.
    """
    global _disabled
    _disabled = True


def can_fork() -> bool:
    """Tell whether ``forked`` may be used."""
    return not _disabled


class ForkedProcess:
    """The way to such a process and back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        """Send it a message."""
        with suppress(OSError):  # it has ended: said where its answer is missing
            self._connection.send(message)

    def recv(self) -> Any:
        """Return its next message.

        Raises: ForkedProcessDiedError when it has ended without one.
        """
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise ForkedProcessDiedError(
                "A process that helps to read and encode ended without a word: it was killed, or "
                "there was no memory left for it. Run the same command again: it goes on from the "
                "parts that are finished."
            ) from error


@contextmanager
def forked(work: Callable[[Connection], object]) -> Iterator[ForkedProcess]:
    """Fork a process that does ``work``, given its end of a pipe; at the end here it is killed."""
    here, there = Pipe()
    process = 0
    try:
        with defer_signals():
            process = os.fork()
            if process == 0:
                here.close()
                _work(work, there)
        there.close()
        with here:
            yield ForkedProcess(here)
    finally:
        if process:
            os.kill(process, signal.SIGKILL)  # it may be at work, where no more is wanted
            os.waitpid(process, 0)


def _work(work: Callable[[Connection], object], there: Connection) -> None:
    """Do the work and end this process, which the other one was copied to."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work(there)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the other process is gone
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # nothing that belongs to the other process is to be flushed or cleaned up


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let Ctrl-C wait; processes started meanwhile never hear it, not even while they import.

    Another thread may be given the signal all the same, and the handler then runs in this one:
    hence handlers that only take note.
    """
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in SIGNALS
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for waiting in caught:
            signal.raise_signal(waiting)
