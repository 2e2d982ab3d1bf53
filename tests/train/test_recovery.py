"""Losses and weights that are no numbers: skipped, gone back from, and never saved."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import load_checkpoint
from common.dataset import DataFolder
from common.device import Device
from common.errors import UserError
from common.models.gpt import GPT
from common.run_dir import checkpoints
from tests.train.runs import TINY, final_bytes, metrics, numbers, pretrain
from tests.train.stops import StopAfter
from train.batches.prefetcher import Prefetcher
from train.loop import update
from train.monitoring.metrics import Update
from train.optim.lr_schedule import learning_rate_at
from train.pretrain import resume_run
from train.signals import StopRequest
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_plan")


UpdateOf = Callable[[Trainer, int, float], Update]


def bad_at(*bad: int) -> UpdateOf:
    """Return updates during which, at these steps only, weights are not numbers."""

    def updated(trainer: Trainer, step: int, lr: float) -> Update:
        if step not in bad:
            return update(trainer, step, lr)
        weights = trainer.model.wte.weight.data
        kept = weights.clone()
        weights.fill_(math.nan)
        result = update(trainer, step, lr)
        weights.copy_(kept)
        return result

    return updated


def is_as_planned(trainer: Trainer, step: int, lr: float) -> bool:
    return lr == learning_rate_at(step, TINY["max_steps"], trainer.config)


def spoilt_at_7(trainer: Trainer, step: int, lr: float) -> Update:
    """Spoil the weights at update 7, if the learning rate is as planned."""
    if step == 7 and is_as_planned(trainer, step, lr):
        trainer.model.wte.weight.data.fill_(math.nan)
    return update(trainer, step, lr)


def spoilt_always(trainer: Trainer, step: int, lr: float) -> Update:
    """Spoil the weights at update 7, at whatever learning rate."""
    if step == 7:
        trainer.model.wte.weight.data.fill_(math.nan)
    return update(trainer, step, lr)


def too_large_after_6(trainer: Trainer, step: int, lr: float) -> Update:
    """Leave finite weights after update 5 whose products are none, if the rate is as planned."""
    result = update(trainer, step, lr)
    if step == 5 and is_as_planned(trainer, step, lr):
        trainer.model.get_parameter("ln_f.weight").data.fill_(3e38)
    return result


def half_from(first: int) -> UpdateOf:
    """Halve the learning rate from update ``first`` on: what a return there should come to."""
    return lambda trainer, step, lr: update(trainer, step, lr * (0.5 if step >= first else 1.0))


def with_updates(monkeypatch: pytest.MonkeyPatch, updated: UpdateOf) -> None:
    monkeypatch.setattr("train.loop.update", updated)


def state(run: Path) -> dict[str, Any]:
    latest = run / (run / "latest").read_text(encoding="utf-8").strip()
    return dict(json.loads((latest / "state.json").read_bytes())["progress"])


def test_a_bad_update_leaves_weights_alone_and_the_run_goes_on(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with_updates(monkeypatch, bad_at(7))
    run = pretrain(data.path, tmp_path, eval_interval=1, log_interval=5, dropout=0.0)
    by_step = {line["step"]: line for line in metrics(run)}
    assert sorted(by_step) == list(range(1, 13))
    assert by_step[8]["loss"] is None
    assert by_step[8]["grad_norm"] is None
    assert [by_step[step]["skipped_steps"] for step in (7, 8, 9, 12)] == [0, 1, 1, 1]
    assert by_step[8]["val_loss"] == by_step[7]["val_loss"] != by_step[9]["val_loss"]
    assert by_step[9]["tokens"] == 9 * 64  # its windows are passed over
    assert "step 8: the loss is nan" in caplog.text
    assert state(run)["lr_scale"] == 1.0


def test_bad_updates_count_only_in_a_row(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_updates(monkeypatch, bad_at(3, 7))
    run = pretrain(data.path, tmp_path, max_bad_steps=2)
    assert state(run)["n_skipped"] == 2
    assert state(run)["n_returns"] == 0


def test_a_skipped_update_is_recorded_though_no_line_is_due(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_updates(monkeypatch, bad_at(7))
    run = pretrain(data.path, tmp_path, log_interval=5)
    assert [line["step"] for line in metrics(run)] == [5, 6, 8, 10, 12]


def test_spoilt_weights_are_given_up_for_a_checkpoint_at_half_the_rate(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    networks: list[GPT] = []
    make = GPT.__init__

    def made(self: GPT, *shape: Any, **settings: Any) -> None:
        networks.append(self)
        make(self, *shape, **settings)

    with_updates(monkeypatch, spoilt_at_7)
    monkeypatch.setattr(GPT, "__init__", made)
    run = pretrain(data.path, tmp_path, max_bad_steps=3, log_interval=1)
    assert len(networks) == 1  # past bug: a GPU more than half full had no room for a second
    assert "after 3 updates in a row: back to " in caplog.text
    assert "step-00000006, with the learning rate times 0.5" in caplog.text
    assert state(run)["lr_scale"] == 0.5
    with_updates(monkeypatch, half_from(6))
    expected = pretrain(data.path, tmp_path, "expected", log_interval=1)
    assert final_bytes(run) == final_bytes(expected)
    lines, wanted = numbers(run), numbers(expected)
    for line in wanted[6:]:
        line["lr"] /= 2  # the law of the other run is in its updates, so its log lacks it
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines == wanted


def test_a_run_that_went_back_has_its_windows_cut_ahead_again(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: Path
) -> None:
    """Past bug: what cut them was closed with the run's first part. As where there is a GPU."""
    monkeypatch.setattr(
        "train.trainer.Prefetcher", lambda make, n_ahead: Prefetcher(make, n_ahead=2)
    )
    with_updates(monkeypatch, spoilt_at_7)
    run = pretrain(data.path, tmp_path, max_bad_steps=3, log_interval=1)
    assert final_bytes(run) == final_bytes(spoilt)


def test_an_evaluation_that_is_no_number_gives_its_checkpoint_up(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with_updates(monkeypatch, too_large_after_6)
    run = pretrain(data.path, tmp_path)
    assert "step 6: the loss is nan on train" in caplog.text
    assert "step-00000004, with the learning rate times 0.5" in caplog.text
    with_updates(monkeypatch, half_from(4))
    assert final_bytes(run) == final_bytes(pretrain(data.path, tmp_path, "expected"))


@pytest.mark.parametrize("n_times", [8, 9, 10, 12])
def test_a_run_resumed_around_a_return_equals_one_never_stopped(
    data: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_times: int,
    spoilt: Path,
) -> None:
    """Stopped before, amid, and after the bad updates."""
    with_updates(monkeypatch, spoilt_at_7)
    run = pretrain(data.path, tmp_path, stop=StopAfter(n_times), max_bad_steps=3, log_interval=1)
    assert resume_run(run, "cpu", StopRequest()) is None
    assert final_bytes(run) == final_bytes(spoilt)
    assert numbers(run) == numbers(spoilt)


@pytest.fixture(scope="module")
def spoilt(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        with_updates(patch, spoilt_at_7)
        folder = tmp_path_factory.mktemp("spoilt")
        return pretrain(data.path, folder, max_bad_steps=3, log_interval=1)


def test_after_three_returns_it_stops_and_says_what_to_do(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    with_updates(monkeypatch, spoilt_always)
    with pytest.raises(UserError) as raised:
        pretrain(data.path, tmp_path, max_bad_steps=2)
    assert raised.value.message == (
        "step 9: the loss is nan, the norm of the gradient nan, as after 2 updates in a row: the "
        "run has diverged, also after 3 returns to an earlier checkpoint, each with half the "
        "learning rate. Train anew with a lower --learning-rate than 0.00125."
    )
    assert_all_finite(tmp_path / "runs" / "tiny", cpu)


def assert_all_finite(run: Path, cpu: Device) -> None:
    for folder in checkpoints(run):
        for weights in load_checkpoint(folder, cpu.torch_device).model.parameters():
            assert weights.isfinite().all()


@pytest.mark.parametrize(
    ("learning_rate", "settings"),
    [
        (1e30, {}),  # the first update leaves weights that are large, but numbers
        (1e30, {"eval_interval": 1}),
        (1e18, {"eval_interval": 1}),  # as here, but their products are none
        (1e19, {"eval_interval": 1}),
        (1e39, {}),  # and here they are none
        (1e39, {"eval_interval": 1}),
        (1e39, {"max_steps": 1}),
    ],
    ids=str,
)
def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint_that_is_not_finite(
    data: DataFolder, tmp_path: Path, learning_rate: float, settings: dict[str, Any], cpu: Device
) -> None:
    with pytest.raises(UserError, match=r"the run has diverged, also .* a lower --learning-rate"):
        pretrain(
            data.path,
            tmp_path,
            learning_rate=learning_rate,
            save_interval=1,
            max_bad_steps=3,
            **settings,
        )
    run = tmp_path / "runs" / "tiny"
    assert_all_finite(run, cpu)
    if (run / "metrics.jsonl").exists():
        content = (run / "metrics.jsonl").read_text(encoding="utf-8")
        assert "NaN" not in content
        assert "Infinity" not in content
