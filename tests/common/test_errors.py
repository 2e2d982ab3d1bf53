"""A signal ends a command without a traceback, even while Python cleans up behind it."""

import signal
import subprocess
import sys

import pytest

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
