"""Loggers get the records of metrics.jsonl, in one place for a whole run, and stop nothing."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common.dataset import DataFolder
from common.errors import ConfigError
from tests.train.runs import metrics, pretrain
from tests.train.stops import StopAfter
from train.monitoring.loggers import PACKAGES, MetricsLogger, make_logger
from train.pretrain import resume_run
from train.signals import StopRequest

pytestmark = pytest.mark.usefixtures("quick_plan")


class FakeRun:
    """A run of Weights & Biases: keeps what it is sent."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.records: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class FakeWandb(ModuleType):
    """The module, with a network that can fail."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.fails = False

    def init(self, **settings: Any) -> FakeRun:
        if self.fails:
            raise ConnectionError("no route to host")
        self.runs.append(FakeRun(**settings))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def sent(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the numbers of metrics.jsonl: what a logger can draw."""
    return [{k: v for k, v in line.items() if isinstance(v, int | float)} for line in lines]


def test_wandb_gets_every_record_and_a_resumed_run_goes_on_in_the_same_one(
    data: DataFolder, tmp_path: Path, wandb: FakeWandb
) -> None:
    # asked at each step, and once more after the evaluation of step 6: this is step 8
    run = pretrain(data.path, tmp_path, stop=StopAfter(9), tracker="wandb")
    resume_run(run, "cpu", StopRequest())
    first, second = wandb.runs
    assert [line["step"] for line in first.records] == [2, 4, 6, 8]
    assert [line["step"] for line in second.records] == [10, 12]
    assert first.records + second.records == sent(metrics(run))
    assert first.settings["id"] == second.settings["id"] != ""
    assert {s.settings["resume"] for s in wandb.runs} == {"allow"}
    assert first.settings["name"] == "tiny"
    assert first.settings["config"] == json.loads((run / "config.json").read_bytes())
    assert first.axes == [("*", "step")]


def test_another_run_has_another_id(data: DataFolder, tmp_path: Path, wandb: FakeWandb) -> None:
    for _ in range(2):
        pretrain(data.path, tmp_path, max_steps=1, tracker="wandb")
    assert len({run.settings["id"] for run in wandb.runs}) == 2


def test_a_tracker_that_fails_warns_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def send(step: int, values: dict[str, float]) -> None:
        calls.append(step)
        if step == 2:
            raise TimeoutError("no answer")

    logger = MetricsLogger("wandb", send)
    for step in (1, 2, 3, 4):
        logger.log({"step": step})
    assert calls == [1, 2]
    assert [line.getMessage() for line in caplog.records] == [
        "--tracker wandb does not work (TimeoutError: no answer). Training goes on without it; "
        "metrics.jsonl has everything."
    ]


def test_a_tracker_that_cannot_begin_warns_and_the_run_is_trained(
    data: DataFolder, tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.fails = True
    run = pretrain(data.path, tmp_path, max_steps=2, tracker="wandb")
    assert metrics(run)[-1]["step"] == 2
    assert "--tracker wandb does not work (ConnectionError: no route to host)" in caplog.text


@pytest.mark.parametrize("kind", PACKAGES)
def test_what_is_not_installed_is_a_sentence_before_a_run_is_made(
    data: DataFolder, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = "torch.utils.tensorboard" if kind == "tensorboard" else kind
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(ConfigError) as raised:
        pretrain(data.path, tmp_path, tracker=kind)
    assert raised.value.message == (
        f"--tracker {kind}: its package is not installed: .venv/bin/pip install {PACKAGES[kind]}"
    )
    assert not (tmp_path / "runs").exists()


def test_without_a_tracker_no_package_of_one_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    make_logger("none", tmp_path, 0, {}).log({"step": 1, "loss": 2.0})


def test_tensorboard_reads_what_metrics_jsonl_holds_also_after_a_resume(
    data: DataFolder, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain(data.path, tmp_path, stop=StopAfter(11), log_interval=1, tracker="tensorboard")
    # as if killed after step 10 with step 8 as the last checkpoint: 9 and 10 are sent again
    (run / "latest").write_text("step-00000008\n", encoding="utf-8")
    resume_run(run, "cpu", StopRequest())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 13))
    for key in ("loss", "lr", "val_loss", "tokens_per_second"):
        read = [(event.step, event.value) for event in events.Scalars(key)]
        expected = [(line["step"], line[key]) for line in lines if key in line]
        assert [step for step, _ in read] == [step for step, _ in expected]
        assert [value for _, value in read] == pytest.approx([value for _, value in expected])
