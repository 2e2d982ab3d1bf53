"""How a command ends: its exit code, and errors that say in a sentence what a person can mend.

A sentence: what, where, found against expected, what to do. A wrong call in code is a ValueError.
"""

import atexit
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

EXIT_SKIPPED = 3  # done, but something was left out
EXIT_SIGINT = 130  # stopped by Ctrl-C; by another signal 128 + its number

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # the last: the terminal is gone
# New objects after which Python looks for cycles of forgotten ones. At its own 700 it looks for
# 0.3 of the 1.7 s that importing torch takes, and finds next to nothing.
COLLECT_AFTER = 100_000
AGAIN_S = 0.01  # after which a handler is called again: mostly an object is forgotten by then
IMPORT_TRIES = 50  # as often, half a second in all, a signal waits for the end of an import


class UserError(click.ClickException):
    """An error that the person who typed the command can mend; exit code 1."""


class ConfigError(UserError):
    """Settings that do not go together."""


class DataError(UserError):
    """Sources, or a data folder, that cannot be used as they are."""


class CheckpointError(UserError):
    """A run or a checkpoint that cannot be used as it is."""


@contextmanager
def explained(
    what: str, remedy: str = "", kind: type[UserError] = CheckpointError
) -> Iterator[None]:
    """Say in a sentence what a library raises in the block, which may be anything.

    ``what`` says what was not to be had; it is followed by the reason and the ``remedy``. A
    UserError is a sentence already.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500].rstrip(".")
        sentence = f"{what} ({type(error).__name__}: {reason}). {remedy}".rstrip()
        raise kind(sentence) from error


def run(group: click.Group, stage: str) -> None:
    """Run a stage's commands and exit: 0, 1 for a UserError, 2 for usage, 128 + a signal."""
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)  # at its end Python looks for cycles once more: 0.3 s after torch
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    sys.unraisablehook = raise_again
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
            signal.signal(number, stop)
    try:
        code = group.main(prog_name=f"python -m {stage}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(EXIT_SIGINT)
    except OSError as error:
        if error.errno != errno.EPIPE:  # a full disk, a folder that may not be written ...
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"Error: {where}{error.strerror or error}.", err=True)
            sys.exit(1)
        # the reader of our output went away, as head does; flushing again at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        # Python's own clean-up prints the traceback of a handler that raises
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: os._exit(128 + number))
        signal.setitimer(signal.ITIMER_REAL, 0)  # of a signal that came amid the last import
    sys.exit(code if isinstance(code, int) else 0)


def stop(number: int, frame: FrameType | None, n_tries: int = IMPORT_TRIES) -> None:
    """End by a signal: what is raised has files cleaned up."""
    if is_postponed(stop, number, frame, n_tries):
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def is_postponed(
    handler: Callable[[int, FrameType | None, int], None],
    number: int,
    frame: FrameType | None,
    n_tries: int,
) -> bool:
    """Return whether a signal interrupted an import, behind which ``handler`` is called again.

    What is raised amid one, Python makes another error of (in ``__set_name__``), and libraries in
    C++ abort, or lose it and go on with half a module. After so many tries the process exits: only
    what is imported before there is anything to clean up, as torch, takes so long.
    """
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        return False
    if n_tries == 0:
        os._exit(128 + number)
    call_again(lambda number, frame: handler(number, frame, n_tries - 1), number)
    return True


def call_again(handler: Callable[[int, FrameType | None], object], number: int) -> None:
    """Call the handler of a signal anew in a moment, by a timer: to start a thread takes locks."""
    signal.signal(signal.SIGALRM, lambda _, frame: handler(number, frame))
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


def raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Call a signal's handler anew which raised where Python ignores it, as in a ``__del__``.

    Not where that handler is in place no more: then it has taken note of the signal itself.
    """
    number = 0
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(ignored.exc_value, SystemExit) and isinstance(ignored.exc_value.code, int):
        number = ignored.exc_value.code - 128
    if number not in signal.valid_signals():
        sys.__unraisablehook__(ignored)
    elif callable(handler := signal.getsignal(number)):
        call_again(handler, number)


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
