"""What holds for every test: Ctrl-C is heard, torch computes in one thread, no disk is waited for.

In networks as small as the tests' more threads mostly wait for each other: twenty times longer
where another program has one of two cores.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# At import, before the conftests of the folders below import torch: it reads this only once.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell lets what it runs in the background ignore Ctrl-C, and nohup hangups: so would all that
# tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _precision_of_a_fresh_process() -> Iterator[None]:
    """Undo what training sets for its whole process: how float32 is multiplied."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session", autouse=True)
def _nothing_flushed() -> Iterator[None]:
    """Leave out what only a power cut would show, 4 ms each time; processes that tests start flush.

    What must be flushed, and when, is held by tests/faults. A closed descriptor is still an error.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real texts and vocabularies, beside the repository and no part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not there: ../shared")
    return folder
