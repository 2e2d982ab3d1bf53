"""Pictures and tables of runs hold what metrics.jsonl holds."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex

from common.errors import CheckpointError, ConfigError
from train.cli import main
from train.report.compare import compare, differing_settings
from train.report.plot import curves_of, draw, make_figure, read_run, read_runs, text_chart


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "tokens": 64 * step, "seconds": 0.5 * step, "loss": 4.0 - step / 10,
        "lr": 1e-3 * step, "grad_norm": 1.0 + step, "tokens_per_second": 1000.0 * step,
        "skipped_steps": 0,
    } | more  # fmt: skip


QUERN = [
    record(1),
    record(2, loss=None, grad_norm=None, skipped_steps=1),
    record(3, train_loss=3.0, val_loss=3.5, train_bpb=1.0, val_bpb=1.2),
    record(4, train_loss=2.5, val_loss=3.25, train_bpb=0.9, val_bpb=1.1),
    record(130, train_loss=2.0, val_loss=3.75, train_bpb=0.8, val_bpb=1.3),
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder of three runs without checkpoints: quern, other, and empty, not begun."""
    for name, lines, rate in (
        ("quern", QUERN, 1e-3), ("other", [record(7)], 2e-3), ("empty", [], 1)
    ):  # fmt: skip
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        settings = {
            "format": 1, "preset": "tiny", "device": "cpu", "data": {"sha256": "abc"},
            "model": {"n_layer": 2}, "train": {"learning_rate": rate, "patience": 0},
        }  # fmt: skip
        (run / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "runs"


@pytest.mark.parametrize(("x", "scale"), [("steps", 1), ("tokens", 64), ("seconds", 0.5)])
def test_the_panels_draw_what_is_logged(runs: Path, x: Any, scale: float) -> None:
    by_run = {name: read_run(runs / name) for name in ("quern", "other")}
    panels = make_figure(by_run, x).axes
    drawn: list[dict[str, Any]] = [
        {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
        for axes in panels
    ]
    assert drawn[0] == {
        "quern train": [[scale, 3.9], [3 * scale, 3.7], [4 * scale, 3.6], [130 * scale, -9.0]],
        "quern val": [[3 * scale, 3.5], [4 * scale, 3.25], [130 * scale, 3.75]],
        "other train": [[7 * scale, 3.3]],
    }
    assert drawn[1]["quern"] == [[scale * s, 1e-3 * s] for s in (1, 2, 3, 4, 130)]
    assert drawn[2]["quern"] == [[scale * s, 1.0 + s] for s in (1, 3, 4, 130)]
    assert drawn[3] == {
        "quern": [[scale * s, 1000.0 * s] for s in (1, 2, 3, 4, 130)],
        "other": [[7 * scale, 7000.0]],
    }
    assert {axes.get_xlabel() for axes in panels} == {x}
    colours = {str(line.get_label()): to_hex(line.get_color()) for line in panels[0].lines}
    assert colours["quern train"] == colours["quern val"] != colours["other train"]


def test_the_file_is_what_its_name_says(runs: Path, tmp_path: Path) -> None:
    draw([runs / "quern"], "steps", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    draw([runs / "quern", runs / "other"], "tokens", tmp_path / "a.svg")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "a.svg").read_text("utf-8"))
    assert {"quern val", "other train", "tokens", "learning rate"} <= set(texts)


def test_what_cannot_be_drawn_is_a_sentence(runs: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "a"):
        with pytest.raises(
            ConfigError, match=r"cannot be drawn \(Format .* is not supported .*png"
        ):
            draw([runs / "quern"], "steps", tmp_path / name)
    with pytest.raises(ConfigError, match=r"no/a\.png: cannot be drawn \(.*No such file"):
        draw([runs / "quern"], "steps", tmp_path / "no" / "a.png")
    with pytest.raises(CheckpointError, match=r"empty/metrics\.jsonl: nothing is logged yet"):
        draw([runs / "empty"], "steps", tmp_path / "a.png")
    assert not list(tmp_path.glob("a*"))


@pytest.mark.parametrize("line", ["{", "7", "null", '{"loss": 3.0}', '{"step": "two"}'])
@pytest.mark.parametrize("command", ["plot", "compare"])
def test_a_damaged_line_is_named(runs: Path, line: str, command: str) -> None:
    metrics = runs / "quern" / "metrics.jsonl"
    first, _, rest = metrics.read_text(encoding="utf-8").partition("\n")
    metrics.write_text(f"{first}\n{line}\n{rest}", encoding="utf-8")
    result = CliRunner().invoke(main, [command, "quern", "--runs-dir", str(runs)])
    assert result.exit_code == 1
    assert f"{metrics}, line 2: damaged" in result.stderr


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_an_unknown_run_is_a_sentence(runs: Path, command: str) -> None:
    result = CliRunner().invoke(main, [command, "quern", "nothing", "--runs-dir", str(runs)])
    assert result.exit_code == 1
    assert "runs/nothing: no such run. Runs in " in result.stderr


def test_without_a_file_the_loss_is_drawn_in_the_terminal_in_80_columns_where_piped(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    result = CliRunner().invoke(main, ["plot", "quern", "other", "--runs-dir", str(runs)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].strip() == "loss over steps"
    assert max(map(len, lines)) == 80
    for label in ("quern train", "quern val", "other train"):
        assert label in result.stdout
    # the axes end where the logged values do
    assert re.search(r"^ *3\.9", result.stdout, re.MULTILINE)
    assert re.search(r"^-9\.0", result.stdout, re.MULTILINE)
    assert float(lines[-1].split()[0]) == 1
    assert float(lines[-1].split()[-1]) == 130


@pytest.mark.parametrize(
    "other", [{"model": {"vocab_size": 300}}, {"vocabulary_sha256": "d0"}], ids=str
)
def test_where_vocabularies_differ_losses_are_in_bits_a_byte(
    runs: Path, other: dict[str, Any], tmp_path: Path
) -> None:
    config = json.loads((runs / "quern" / "config.json").read_bytes())
    config |= {"model": {"vocab_size": 65}, "vocabulary_sha256": "c0"}
    for name, settings in (("quern", config), ("other", config | other)):
        (runs / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"other/metrics\.jsonl: holds no evaluation yet"):
        draw([runs / "quern", runs / "other"], "steps", tmp_path / "a.svg")
    assert text_chart([runs / "other"], "steps", 80)
    line = record(7, loss=6.0, train_loss=4.0, train_bpb=1.0, val_loss=5.0, val_bpb=1.5)
    (runs / "other" / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    by_run, unit = read_runs([runs / "quern", runs / "other"])
    assert unit == "bits a byte"
    by_hand = {"other train": [(7.0, 1.5)], "other val": [(7.0, 1.5)]}
    assert curves_of("other", by_run["other"], "loss", "steps") == by_hand
    val = [(3.0, 1.2), (4.0, 1.1), (130.0, 1.3)]
    assert curves_of("quern", by_run["quern"], "loss", "steps")["quern val"] == val
    draw([runs / "quern", runs / "other"], "steps", tmp_path / "a.svg")
    assert "loss, bits a byte (train thin, val bold)" in (tmp_path / "a.svg").read_text("utf-8")
    assert "loss, bits a byte, over steps" in text_chart(
        [runs / "quern", runs / "other"], "steps", 80
    )
    assert read_runs([runs / "quern"])[1] == "nats a token"


def test_a_run_without_a_loss_is_an_empty_chart(runs: Path) -> None:
    line = json.dumps(record(2, loss=None)) + "\n"
    (runs / "empty" / "metrics.jsonl").write_text(line, encoding="utf-8")
    assert "loss over steps" in text_chart([runs / "empty"], "steps", 80)


TABLE_BY_HAND = """\
run    parameters  tokens  steps    time  val loss  bits/byte  tokens/s
quern           -   8,320    130  1m 05s    3.2500     1.1000     3,000
other           -     448      7      4s         -          -     7,000
empty           -       -      -       -         -          -         -

differing      quern  other  empty
learning_rate  0.001  0.002      1"""


def test_the_table_holds_figures_worked_out_by_hand(runs: Path) -> None:
    assert compare([runs / name for name in ("quern", "other", "empty")]) == TABLE_BY_HAND


def test_equal_runs_differ_in_nothing_and_numbers_are_shown_without_their_rounding(
    runs: Path,
) -> None:
    config = json.loads((runs / "other" / "config.json").read_bytes())
    config["train"]["learning_rate"] = 3 * 2e-4  # 0.0006000000000000001
    (runs / "other" / "config.json").write_text(json.dumps(config))
    row = ["learning_rate", "0.001", "0.0006"]
    assert differing_settings([runs / "quern", runs / "other"]) == [row]
    assert differing_settings([runs / "quern", runs / "quern"]) == []
