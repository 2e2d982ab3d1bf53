"""Nothing is lost: a few of each fault here, some thousands behind ``slow``; see __main__.py."""

import subprocess
from pathlib import Path

import pytest

from tests.faults.__main__ import CHECKS
from tests.processes import REPOSITORY, start_python

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds open files by /proc")
TIMEOUT_S = 600  # what takes longest takes a fifth of it


def checked(*arguments: str) -> "subprocess.CompletedProcess[str]":
    with start_python(["-m", "tests.faults", *arguments], REPOSITORY) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_few_faults_of_each_kind_lose_nothing() -> None:
    done = checked("--few")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > len(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_thousands_of_faults_lose_nothing(name: str) -> None:
    done = checked("--slow", name)
    assert done.returncode == 0, done.stdout + done.stderr
