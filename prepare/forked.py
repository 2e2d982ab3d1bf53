"""A process beside this one, that does one thing for it and ends with it.

It is forked, since it goes on with what is here, an iterator. A fork copies the locks of threads,
and not the threads: hence ``disable_fork``.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection

SIGNALS = {signal.SIGINT, signal.SIGTERM}

_disabled = False


def disable_fork() -> None:
    """Let no such process begin from now on.

    This one is a worker, and each core has one; or it has threads, as pyarrow's.
    """
    global _disabled
    _disabled = True


def can_fork() -> bool:
    """Return whether ``forked`` may be used."""
    return not _disabled


@contextmanager
def forked(work: Callable[[Connection], object]) -> Iterator[Connection]:
    """Fork a process that does ``work``, given where it is to send; give where that is received.

    At the end here it is killed. Where it has ended before, ``recv`` is an EOFError.
    """
    receiver, sender = Pipe()  # of sockets, which hold more than a pipe: a tenth less time
    process = 0
    try:
        with defer_signals():
            process = os.fork()
            if process == 0:
                receiver.close()
                _work(work, sender)
        sender.close()
        with receiver:
            yield receiver
    finally:
        if process:
            os.kill(process, signal.SIGKILL)  # it may be at work, where no more is wanted
            os.waitpid(process, 0)


def _work(work: Callable[[Connection], object], sender: Connection) -> None:
    """Do the work and end this process, which the other one was copied to."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work(sender)
    except BrokenPipeError:
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
