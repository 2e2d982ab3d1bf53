"""A run with two checkpoints."""

from pathlib import Path

import pytest

from common.files import write_json
from common.run_dir import new_run
from tests.common.saved import save


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with the checkpoints of steps 10 and 20."""
    folder = new_run(tmp_path / "runs", "tiny")
    write_json(folder / "config.json", {"format": 1})
    save(folder, 10)
    save(folder, 20)
    return folder
