"""Start the stages as a person does: ``python -m train ...`` in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120  # of a process that hangs: nothing here takes a tenth of it


def environment() -> dict[str, str]:
    """Return this process's variables, with our packages importable and one thread of arithmetic.

    More threads only get into each other's way in networks as small as the tests'.
    """
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start_python(
    arguments: Sequence[str], folder: Path, before: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    """Start Python with ``arguments`` in ``folder``; its three streams are pipes of UTF-8."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=before,
    )


def run_python(
    arguments: Sequence[str],
    folder: Path,
    *,
    typed: str = "",
    before: Callable[[], None] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run Python to its end, with ``typed`` as its standard input."""
    with start_python(arguments, folder, before) as process:
        stdout, stderr = process.communicate(typed, timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_all(
    commands: dict[str, list[str]], folder: Path
) -> "dict[str, subprocess.CompletedProcess[str]]":
    """Run several Python commands, two at a time; return how each ended, by its name."""
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda arguments: run_python(arguments, folder), commands.values())
        return dict(zip(commands, ended, strict=True))


def assert_one_sentence(process: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Hold that a command ended with 1 and a message with ``words``, and no traceback."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    last = process.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last
