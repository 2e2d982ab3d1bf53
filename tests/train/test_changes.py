"""Runs that go on otherwise than planned: longer, on other data, from another run's weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.dataset import DataFolder
from common.errors import ConfigError, DataError
from tests.tiny import SENTENCE, prepare_text, words
from tests.train.runs import TINY, final_bytes, metrics, numbers, pretrain
from tests.train.stops import StopAfter
from train.loop import update
from train.monitoring.metrics import Update
from train.pretrain import Changes, resume_run, weights_of
from train.setup.checks import check_settings
from train.signals import StopRequest
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_plan")
# no step depends on the length: neither its rate nor how many tokens go without n-grams
FROZEN: dict[str, Any] = {"learning_rate": 0.0, "matrix_lr": 0.0, "table_lr": 0.0, "min_lr": 0.0}
FLAT = {"min_lr": TINY["learning_rate"], "warmup_steps": 0, "ngram_dropout": 0.2}


def go_on(run: Path, stop: StopRequest | None = None, **changes: Any) -> int | None:
    return resume_run(run, "cpu", stop or StopRequest(), Changes(**changes))


def settings(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "config.json").read_bytes()))


def test_a_finished_run_made_longer_is_the_run_planned_so_where_the_rate_is_flat(
    data: DataFolder, tmp_path: Path
) -> None:
    run = pretrain(data.path, tmp_path, max_steps=8, eval_interval=4, **FLAT)
    assert go_on(run) is None  # finished
    assert go_on(run, max_steps=12) is None
    planned = pretrain(data.path, tmp_path, "planned", max_steps=12, eval_interval=4, **FLAT)
    assert final_bytes(run) == final_bytes(planned)
    assert numbers(run) == numbers(planned)
    assert settings(run)["train"]["max_steps"] == 12
    assert settings(run)["changes"][0]["max_steps"] == 8


def test_the_schedule_of_a_longer_run_is_that_of_all_its_steps(
    data: DataFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = pretrain(data.path, tmp_path, max_steps=8, log_interval=1)
    go_on(run, max_steps=16)
    planned = pretrain(data.path, tmp_path, "planned", max_steps=16, log_interval=1)
    rates = [[line["lr"] for line in metrics(each)] for each in (run, planned)]
    assert rates[0][8:] == rates[1][8:]
    assert rates[0][:8] != rates[1][:8]
    assert "16 steps in place of 8: from here on the learning rate is that of a " in caplog.text


def test_minutes_more_are_steps_at_the_speed_so_far(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path)
    progress = json.loads((run / "step-00000012" / "state.json").read_bytes())["progress"]
    assert go_on(run, StopAfter(1), minutes=450 * progress["update_s"] / 12 / 60) is not None
    assert settings(run)["train"]["max_steps"] in (461, 462)  # by rounding
    assert settings(run)["time_limit"] == {
        "seconds": pytest.approx(450 * progress["update_s"] / 12),
        "from_step": 12,
        "from_s": progress["seconds"],
        "auto": [],
    }
    assert go_on(run, max_steps=13) is None  # so many, however long they take
    assert settings(run)["time_limit"] is None


def test_a_run_cannot_become_shorter_than_it_is(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path)
    with pytest.raises(ConfigError, match=r"--max-steps 11: .* has made 12 steps already"):
        go_on(run, max_steps=11)
    with pytest.raises(ConfigError, match="--max-steps and --minutes are both given"):
        go_on(run, max_steps=20, minutes=1)


@pytest.fixture
def changed(data: DataFolder, tmp_path: Path) -> tuple[Path, Path]:
    """Return a stopped run, and a data folder of other text with its vocabulary."""
    run = pretrain(data.path, tmp_path, stop=StopAfter(6))
    (tmp_path / "other").mkdir()
    return run, prepare_text(words(1000, seed=5), tmp_path / "other").path


def test_changed_data_is_refused_until_it_is_allowed_and_that_is_recorded(
    data: DataFolder, changed: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, other = changed
    with pytest.raises(DataError, match=r"the data changed since\. .* --allow-data-change goes on"):
        go_on(run, data_path=other)
    assert go_on(run, data_path=other, allow_data_change=True) is None
    assert "going on with other data, as allowed" in caplog.text
    assert settings(run)["data"]["path"] == str(other)
    assert settings(run)["data"]["sha256"] != data.sha256
    assert settings(run)["changes"] == [
        {"step": 6, "max_steps": 12, "data": {"path": str(data.path), "sha256": data.sha256}}
    ]
    assert metrics(run)[-1]["ended"] == "all 12 steps are made"


def test_data_that_only_moved_is_the_same_data(
    data: DataFolder, tmp_path: Path, changed: tuple[Path, Path]
) -> None:
    run, _ = changed
    moved = Path(shutil.copytree(data.path, tmp_path / "moved"))
    assert go_on(run, data_path=moved) is None
    assert final_bytes(run) == final_bytes(pretrain(data.path, tmp_path, "unmoved"))


def test_data_too_small_for_the_context_is_refused_before_anything_is_written(
    data: DataFolder, tmp_path: Path
) -> None:
    """Past bug: a traceback, after config.json was given the new data's name."""
    run = pretrain(data.path, tmp_path, stop=StopAfter(6), block_size=32)
    before = settings(run)
    small = prepare_text(SENTENCE + "\n", tmp_path).path  # of the same characters
    with pytest.raises(DataError, match=r"val\.bin: .* but --block-size 32 needs 33"):
        go_on(run, data_path=small, allow_data_change=True, max_steps=20)
    assert settings(run) == before
    assert go_on(run) is None


@pytest.mark.parametrize("in_trial", [True, False], ids=["before the first step", "later"])
def test_a_run_goes_on_with_the_files_it_opened_whatever_takes_their_place(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_trial: bool
) -> None:
    """Past bug: val was opened anew at each evaluation, and the best chosen by other text."""
    unchanged = pretrain(data.path, tmp_path, "unchanged")
    folder = Path(shutil.copytree(data.path, tmp_path / "data"))
    (tmp_path / "other").mkdir()
    other = prepare_text(words(1000, seed=5), tmp_path / "other").path

    def replaced(trainer: Trainer, step: int, lr: float) -> Update:
        if folder.exists() and (in_trial or step == 3) and other.exists():
            folder.rename(tmp_path / "former")
            other.rename(folder)
        return update(trainer, step, lr)

    monkeypatch.setattr(f"train.{'setup.autotune' if in_trial else 'loop'}.update", replaced)
    run = pretrain(folder, tmp_path, "replaced")
    assert not other.exists()
    assert numbers(run) == numbers(unchanged)
    with pytest.raises(DataError, match="the data changed since"):
        go_on(run, max_steps=20)


def test_data_written_over_while_a_run_reads_it_are_a_sentence(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(data.path, tmp_path / "data"))

    def written_over(trainer: Trainer, step: int, lr: float) -> Update:
        if step == 3:
            content = (folder / "val.bin").read_bytes()
            (folder / "val.bin").write_bytes(content[::-1])
        return update(trainer, step, lr)

    monkeypatch.setattr("train.loop.update", written_over)
    with pytest.raises(DataError, match=r"data/val\.bin: was written over while it was read"):
        pretrain(folder, tmp_path)
    assert not any("val_loss" in line for line in metrics(tmp_path / "runs" / "tiny"))


def test_the_batch_size_may_change_and_with_it_no_result(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path, stop=StopAfter(6), dropout=0.0)
    assert go_on(run, batch_size=4) is None
    assert settings(run)["train"]["batch_size"] == 4
    state = json.loads((run / "step-00000012" / "state.json").read_bytes())
    assert state["stepper"]["batch_size"] == 4
    same = pretrain(data.path, tmp_path, "same", dropout=0.0)
    assert metrics(run)[-1]["val_loss"] == pytest.approx(metrics(same)[-1]["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "trained"), [("learning_rate", 0.5, 0.01), ("max_steps", 99, 12)]
)
def test_settings_edited_by_hand_are_a_sentence(
    data: DataFolder, tmp_path: Path, name: str, value: float, trained: float
) -> None:
    run = pretrain(data.path, tmp_path, stop=StopAfter(6))
    edited = settings(run)
    edited["train"] |= {name: value, "log_interval": 1}
    (run / "config.json").write_text(json.dumps(edited), encoding="utf-8")
    sentence = rf"config\.json: {name} is {value}, but .*step-00000006 was trained with {trained}: "
    with pytest.raises(ConfigError, match=sentence):
        go_on(run)
    edited["train"][name] = trained  # log_interval changes no weights
    (run / "config.json").write_text(json.dumps(edited), encoding="utf-8")
    # a longer run that is stopped before it saved anew is not edited by hand
    assert go_on(run, StopAfter(1), max_steps=20) is not None
    assert go_on(run) is None
    assert metrics(run)[-1]["ended"] == "all 20 steps are made"


def test_an_import_without_a_plan_is_a_sentence(tmp_path: Path) -> None:
    """It was made before those that can be resumed: with no length, and no state of a trainer."""
    settings = {"imported_from": "elsewhere", "model": {}, "train": {"max_steps": None}}
    state = {"step": 0, "model": {}}
    with pytest.raises(ConfigError, match=r"x: was imported by an earlier .* --init-from x, or"):
        check_settings(settings, tmp_path / "x" / "step-00000000", state, tmp_path)


def test_another_vocabulary_is_refused_always(tmp_path: Path, changed: tuple[Path, Path]) -> None:
    run, _ = changed
    (tmp_path / "third").mkdir()
    third = prepare_text(words(1000).replace("q", "x"), tmp_path / "third").path
    with pytest.raises(DataError, match="its vocabulary is not the one of"):
        go_on(run, data_path=third, allow_data_change=True)
    with pytest.raises(DataError, match=r"its vocabulary .* --tokenizer .*vocab\.json"):
        pretrain(third, tmp_path, "new", init_from=weights_of(run.parent, "tiny"))


def test_a_run_begins_with_the_weights_of_another(data: DataFolder, tmp_path: Path) -> None:
    first = pretrain(data.path, tmp_path, dropout=0.0)
    best = weights_of(first.parent, "tiny")
    assert best == first / (first / "best").read_text(encoding="utf-8").strip()
    assert weights_of(first.parent, "tiny:latest") == first / "step-00000012"
    # at a rate of 0 they stay what they are; the shape given is another preset's, not this
    second = pretrain(data.path, tmp_path, "second", init_from=best, max_steps=2, **FROZEN)
    folders = best, second / "step-00000002"
    there, here = (load_file(folder / "model.safetensors") for folder in folders)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert settings(second)["init_from"] == str(best)
    evaluated = {line["step"]: line.get("val_loss") for line in metrics(first)}
    assert metrics(second)[-1]["val_loss"] == evaluated[int(best.name[-8:])]


def test_only_what_the_weights_do_not_depend_on_may_differ(
    data: DataFolder, tmp_path: Path
) -> None:
    weights = weights_of(pretrain(data.path, tmp_path).parent, "tiny")
    second = pretrain(data.path, tmp_path, "b", init_from=weights, max_steps=1, block_size=8)
    assert settings(second)["model"]["block_size"] == 8
    with pytest.raises(ConfigError, match=r"--n-layer is 2, but the weights of .* with 1: leave"):
        pretrain(data.path, tmp_path, "c", init_from=weights, n_layer=2)
    learned = pretrain(data.path, tmp_path, "d", positions="learned", max_steps=1)
    with pytest.raises(ConfigError, match="--block-size is 8, but the weights of"):
        pretrain(data.path, tmp_path, "e", init_from=weights_of(learned.parent, "d"), block_size=8)
    with pytest.raises(ConfigError, match="after the colon comes best or latest"):
        weights_of(tmp_path / "runs", "tiny:newest")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patience": 2, **FROZEN}, "no better val loss in 2 evaluat"),
        ({"target_loss": 50.0}, "has reached --target-loss 50"),
    ],
    ids=str,
)
def test_a_run_that_ended_early_is_finished_and_says_why(
    data: DataFolder,
    tmp_path: Path,
    changes: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    run = pretrain(data.path, tmp_path, eval_interval=2, **changes)
    last = metrics(run)[-1]
    assert reason in last["ended"]
    assert last["step"] == (6 if "patience" in changes else 2)
    assert (run / "best").read_text(encoding="utf-8") == "step-00000002\n"
    assert f"ended after step {last['step']}: {last['ended']}" in caplog.text
    assert go_on(run) is None
    assert f"{run} is finished: {last['ended']}." in caplog.text
    assert metrics(run)[-1] == last
