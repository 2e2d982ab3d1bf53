"""Nothing is lost: a few of each fault here, some thousands behind ``slow``; see __main__.py."""

import subprocess

import pytest

from tests.faults.__main__ import CHECKS
from tests.processes import REPOSITORY, run_python


def checked(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_python(["-m", "tests.faults", *arguments], REPOSITORY)


def test_a_few_faults_of_each_kind_lose_nothing() -> None:
    done = checked("--few")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > len(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_thousands_of_faults_lose_nothing(name: str) -> None:
    done = checked("--slow", name)
    assert done.returncode == 0, done.stdout + done.stderr
