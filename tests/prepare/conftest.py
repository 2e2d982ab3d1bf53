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
    """Allow each test to begin processes, whatever the last one read."""
    monkeypatch.setattr("prepare.forked._disabled", False)
