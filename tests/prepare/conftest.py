"""What holds for all tests of prepare."""

import pytest


@pytest.fixture(autouse=True)
def helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test fork, though others have loaded pyarrow."""
    monkeypatch.setattr("prepare.readers.prefetch.can_fork", lambda: True)
