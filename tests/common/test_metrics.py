"""Lines of metrics.jsonl come back, or the damaged one is named."""

from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.metrics import read_metrics, stop_reason


def test_a_metrics_line_cut_short_is_left_out(run: Path) -> None:
    assert read_metrics(run) == []
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "val_loss": 2.5}\n{"step": 20}\n{"ste', encoding="utf-8"
    )
    assert read_metrics(run) == [{"step": 10, "val_loss": 2.5}, {"step": 20}]


def test_a_run_is_finished_where_its_last_line_says_so(run: Path) -> None:
    assert stop_reason(run) is None
    (run / "metrics.jsonl").write_text('{"step": 1, "ended": "why"}\n', encoding="utf-8")
    assert stop_reason(run) == stop_reason(run, 1) == "why"
    assert stop_reason(run, 2) is None  # it was made again from an earlier checkpoint
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2}\n')
    assert stop_reason(run) is None


def test_damaged_metrics_are_an_error_that_names_the_line(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 10}\n{"st\n{"step": 20}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        read_metrics(run)
