"""Real data to test on, which lies beside the repository and is no part of it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real texts and vocabularies."""
    folder = Path(__file__).resolve().parents[3] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not there: ../shared")
    return folder


@pytest.fixture(autouse=True)
def helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test fork, though others have loaded pyarrow."""
    monkeypatch.setattr("prepare.readers.prefetch.can_fork", lambda: True)
