"""A signal ends a command without a traceback, even while Python cleans up behind it."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes import run_python

ENDING = """
import atexit, os, sys
import click
from common import errors

@click.command()
def done():
    atexit.register(os.kill, os.getpid(), int(sys.argv[1]))

errors.run(done, "done")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_python_ends_prints_no_traceback(number: int) -> None:
    command = [sys.executable, "-c", ENDING.replace("sys.argv[1]", str(int(number)))]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", "")


# Python ignores what is raised while it forgets an object, and so it did a Ctrl-C
FORGETTING = """
import os, time
import click
from common import errors

class Forgotten:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(10):
            time.sleep(0)

@click.command()
def work():
    Forgotten()
    time.sleep(60)

errors.run(work, "work")
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "\nStopped.\n"), (signal.SIGTERM, ""), (signal.SIGHUP, "")]
)
def test_a_signal_is_not_lost_where_an_object_is_forgotten(number: int, said: str) -> None:
    command = [sys.executable, "-c", FORGETTING.replace("NUMBER", str(int(number)))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", said)


def test_a_signal_that_its_handler_took_note_of_is_not_sent_again() -> None:
    noting = "signal.signal(15, lambda *_: (signal.signal(15, signal.SIG_DFL), exit(143)))"
    script = FORGETTING.replace("NUMBER", "15").replace("time.sleep(60)", "time.sleep(0.5)")
    script = script.replace("    Forgotten()", f"    {noting}\n    Forgotten()")
    command = [sys.executable, "-c", script.replace("import os,", "import signal, os,")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_another_exception_where_an_object_is_forgotten_is_still_told() -> None:
    script = FORGETTING.replace("os.kill(os.getpid(), NUMBER)", "raise SystemExit('why')")
    script = script.replace("time.sleep(60)", "")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "SystemExit: why" in ended.stderr


# Python 3.11 raises a RuntimeError in place of what __set_name__ raises, libraries an ImportError
IMPORTED = """
import os
import sys
import time

class Signalled:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(float(sys.argv[2]))

class Owner:
    signalled = Signalled()
"""
IMPORTING = """
import contextlib
import sys
import time
import click
from common import errors
from train.signals import StopRequest

@click.command()
@click.argument("values", nargs=-1)
def work(values):
    with {"notes": StopRequest, "raises": contextlib.nullcontext}[sys.argv[3]]():
        try:
            try:
                import imported
            except BaseException as error:
                raise ImportError("no such library") from error
            time.sleep(60)
        finally:
            click.echo("cleaned up")

errors.run(work, "work")
"""


def run_importing(
    script: str, folder: Path, values: Sequence[str]
) -> "subprocess.CompletedProcess[str]":
    """Run a script beside the module that it imports: a signal, its seconds, who handles it."""
    (folder / "imported.py").write_text(IMPORTED, encoding="utf-8")
    return run_python(["-c", script, *values], folder)


@pytest.mark.parametrize("handler", ["raises", "notes"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("seconds", "printed"), [(0.1, "cleaned up\n"), (60, "")])
def test_a_signal_waits_for_the_end_of_an_import_but_not_long(
    seconds: float, printed: str, number: int, handler: str, tmp_path: Path
) -> None:
    values = (str(int(number)), str(seconds), handler)
    ended = run_importing(IMPORTING, tmp_path, values)
    said = "\nStopped.\n" if printed and (number, handler) == (signal.SIGINT, "raises") else ""
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, printed, said)


def test_a_command_that_is_over_when_an_import_is_ends_as_it_would(tmp_path: Path) -> None:
    late = "type('Late', (), {'__del__': lambda self, sleep=time.sleep: sleep(0.1)})()"
    script = IMPORTING.replace("time.sleep(60)", f"click.late = {late}")  # Python ends slowly
    ended = run_importing(script, tmp_path, ("15", "0", "raises"))
    assert ended.returncode in (0, 143)  # the second if it was not over within 10 ms
    assert (ended.stdout, ended.stderr) == ("cleaned up\n", "")
