"""What a run writes as it goes."""

import json
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_checkpoint, verify_checkpoint
from common.dataset import DataFolder
from common.device import Device
from common.run_dir import checkpoints
from tests.train.runs import TINY, evaluate_text, final_bytes, metrics, numbers, pretrain
from train.evaluate import token_lengths
from train.monitoring.metrics import duration, progress_line

LOGGED = [
    "step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second", "skipped_steps",
]  # fmt: skip
EVALUATED = ["train_loss", "val_loss", "train_bpb", "val_bpb"]

pytestmark = pytest.mark.usefixtures("quick_plan")


def test_metrics_have_their_fixed_keys_and_rise_in_step(data: DataFolder, tmp_path: Path) -> None:
    lines = metrics(pretrain(data.path, tmp_path, max_steps=13, log_interval=5))
    assert [line["step"] for line in lines] == [5, 6, 10, 12, 13]
    for line in lines:
        evaluated = line["step"] in (6, 12, 13)
        ended = line["step"] == 13
        assert list(line) == LOGGED + EVALUATED * evaluated + ["ended"] * ended
        assert line["tokens"] == 64 * line["step"]
    assert lines[-1]["ended"] == "all 13 steps are made"
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    # warmup is cut to a tenth of 13 steps, 1; update 5, counted from 1, is the fourth of 12 after
    assert lines[0]["lr"] == pytest.approx(1e-2 * (1 - 3 / 12))


def test_every_setting_is_in_config_json(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path)
    config = json.loads((run / "config.json").read_bytes())
    written = config["model"] | config["train"]
    assert {key: written[key] for key in TINY} == TINY
    assert written["vocab_size"] == data.tokenizer().vocab_size
    assert config["data"] == {"path": str(data.path.resolve()), "sha256": data.sha256}
    assert config["versions"]["torch"] == torch.__version__


def test_the_best_checkpoint_is_the_one_with_the_lowest_val_loss(
    data: DataFolder, tmp_path: Path, cpu: Device
) -> None:
    # a rate that rises until nothing is learned any more
    run = pretrain(
        data.path, tmp_path, max_steps=40, eval_interval=4, learning_rate=0.03, min_lr=3.0
    )
    losses = {line["step"]: line["val_loss"] for line in metrics(run) if "val_loss" in line}
    best_step = min(losses, key=lambda step: losses[step])
    assert best_step < 36  # not among the newest two
    best = run / f"step-{best_step:08d}"
    assert (run / "best").read_text(encoding="utf-8") == best.name + "\n"
    assert checkpoints(run) == [best, run / "step-00000036", run / "step-00000040"]
    verify_checkpoint(best)
    score = evaluate_text(
        load_checkpoint(best, cpu.torch_device).model,
        data.tokens("val"),
        token_lengths(data.tokenizer()),
        cpu,
        max_tokens=TINY["eval_tokens"],
    )
    assert score.loss == losses[best_step]


def test_evaluations_and_saves_do_not_change_the_training(data: DataFolder, tmp_path: Path) -> None:
    often = pretrain(data.path, tmp_path, "often", eval_interval=1, save_interval=1)
    seldom = pretrain(data.path, tmp_path, "seldom", eval_interval=12, save_interval=12)
    trained = [
        {line["step"]: (line["loss"], line["grad_norm"]) for line in numbers(run)}
        for run in (often, seldom)
    ]
    assert len(trained[1]) == 6
    assert {step: trained[0][step] for step in trained[1]} == trained[1]
    assert final_bytes(often)[:2] == final_bytes(seldom)[:2]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    data: DataFolder, tmp_path: Path
) -> None:
    first, again = pretrain(data.path, tmp_path, "a"), pretrain(data.path, tmp_path, "b")
    assert numbers(first) == numbers(again)
    assert final_bytes(first) == final_bytes(again)
    assert numbers(pretrain(data.path, tmp_path, "c", seed=7)) != numbers(first)


def test_it_learns(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path, max_steps=150, eval_interval=75, dropout=0.0)
    # single characters have an entropy of 2.7 nats here
    assert metrics(run)[-1]["val_loss"] < 2.1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (-3, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (7800, "2h 10m")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_progress_line_has_fixed_keys_and_more_where_there_is_more() -> None:
    record = {
        "step": 2_500, "loss": 3.21009, "lr": 6e-4, "tokens_per_second": 41_200.4,
        "skipped_steps": 0,
    }  # fmt: skip
    assert progress_line(record, 5_000, 185.0) == (
        "step 2,500/5,000 | loss 3.2101 | lr 6.0e-04 | 41,200 tok/s | eta 3m 05s"
    )
    assert progress_line(record | {"mfu": 0.4123, "skipped_steps": 2, "loss": None}, 5_000, 0) == (
        "step 2,500/5,000 | loss nan | lr 6.0e-04 | 41,200 tok/s | mfu 41.2% | skipped 2 | eta 0s"
    )
