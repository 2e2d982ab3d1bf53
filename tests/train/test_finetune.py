"""train finetune: from a run of text to one that answers, and what a person can mend."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.chat_format import CHAT_TEMPLATE
from common.checkpoint import load_checkpoint, newest_valid
from common.dataset import DataFolder
from tests.processes import assert_one_sentence, run_each, run_python
from tests.tiny import prepare_text, words
from tests.train.chats import Talk, echoes, write_chats
from tests.train.runs import assert_same_outcome, metrics, pretrain
from train.presets import FINETUNE, LOWER

SHORT = [
    "--max-steps", "8", "--eval-interval", "4", "--log-interval", "1", "--device", "cpu",
    "--batch-size", "2", "--mix", "0.25",
]  # fmt: skip
TUNE = ["train", "finetune", "--from", "runs/base", "--data", "chats", *SHORT]
COMMANDS = {
    "tuned": TUNE,
    "compared": ["train", "compare"],
    "finished": ["train", "resume", "base-chat", "--device", "cpu"],
    "by itself": ["train", "finetune", "--from", "base", "--run", "auto", "--data", "chats"],
    "text": ["train", "finetune", "--from", "base", "--data", "data"],
    "other vocabulary": ["train", "finetune", "--from", "base", "--data", "others"],
    "no base": ["train", "finetune", "--from", "nothing", "--data", "chats"],
    "too long": ["train", "finetune", "--from", "base", "--data", "long"],
    "nothing to mix in": ["train", "finetune", "--from", "moved", "--data", "chats", "--mix", ".1"],
    "too little to mix in": [
        *("train", "finetune", "--from", "base", "--data", "chats", "--mix", ".1"),
        *("--block-size", "1000000"),
    ],
    "mixed with what was imported": [
        *("train", "finetune", "--from", "imported", "--data", "chats", "--mix", ".1"),
    ],
    "on chats": ["train", "finetune", "--from", "base-chat", "--data", "chats", *SHORT],
}


@pytest.fixture(scope="module")
def place(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of text, its data, and conversations, good and bad."""
    folder = tmp_path_factory.mktemp("finetune")
    shutil.copytree(data.path, folder / "data")
    (folder / "other").mkdir()
    other = prepare_text(words(100).replace("q", "x"), folder / "other").tokenizer()
    talks = echoes(60, seed=0, n_turns=1)
    for name, tokenizer in (("chats", data.tokenizer()), ("others", other)):
        write_chats(folder / name, tokenizer, {"train": talks[10:], "val": talks[:10]})
    long: list[Talk] = [[("user", "a"), ("assistant", words(40))]]
    write_chats(folder / "long", data.tokenizer(), {"train": long, "val": long})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        run = pretrain(folder / "data", folder, "base", ngrams=2)
    moved = shutil.copytree(run, folder / "runs" / "moved")
    settings = json.loads((moved / "config.json").read_text(encoding="utf-8"))
    settings["data"]["path"] = str(folder / "gone")
    (moved / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    imported = shutil.copytree(run, folder / "runs" / "imported")
    del settings["data"]
    (imported / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ended(place: Path) -> "dict[str, subprocess.CompletedProcess[str]]":
    return run_each(COMMANDS, place)


Ended = dict[str, "subprocess.CompletedProcess[str]"]


def test_it_begins_with_the_runs_weights_and_lower_rates_and_answers(
    ended: Ended, place: Path
) -> None:
    tuned = ended["tuned"]
    assert tuned.returncode == 0, tuned.stderr
    assert "runs/base-chat, preset tiny" in tuned.stderr
    assert tuned.stderr.count("  it was asked:  ") == 6  # three at each evaluation
    run = place / "runs" / "base-chat"
    settings, before = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (run, place / "runs" / "base")
    )
    # the run's own followed its epochs; these are of two
    assert settings["model"] == before["model"] | {"dropout": 0.0, "ngram_dropout": 0.25}
    assert Path(settings["init_from"]) == newest_valid(place / "runs" / "base", "best")
    assert settings["base_data"] == before["data"]
    for name in ("learning_rate", "matrix_lr", "table_lr"):
        assert settings["train"][name] == pytest.approx(LOWER["finetune"] * before["train"][name])
    for name in ("optimizer", "weight_decay", "tokens_per_step", "beta1"):
        assert settings["train"][name] == before["train"][name]
    assert (settings["train"]["patience"], settings["train"]["mix"]) == (FINETUNE["patience"], 0.25)
    losses = [line["val_loss"] for line in metrics(run) if "val_loss" in line]
    assert losses[-1] < losses[0]
    saved = load_checkpoint(newest_valid(run, "latest"), torch.device("cpu"))
    assert saved.chat_template == CHAT_TEMPLATE
    assert "base-chat" in ended["compared"].stdout
    assert ended["finished"].stderr == "runs/base-chat is finished: all 8 steps are made.\n"


def test_without_a_length_it_reads_some_epochs(ended: Ended, place: Path) -> None:
    assert ended["by itself"].returncode == 0, ended["by itself"].stderr
    assert f", {FINETUNE['epochs']:.2f} epochs;" in ended["by itself"].stderr
    # a run of conversations has the text of the run before it to mix in
    assert ended["on chats"].returncode == 0, ended["on chats"].stderr


def test_what_a_person_can_mend_is_one_sentence(ended: Ended) -> None:
    holds = "data: holds text, not conversations. Make them: python -m prepare chats FILE"
    assert_one_sentence(ended["text"], holds, "--tokenizer runs/base")
    assert_one_sentence(ended["other vocabulary"], "others: its vocabulary is not the one of runs/")
    assert_one_sentence(ended["no base"], "runs/nothing: no such run")
    assert_one_sentence(
        ended["too long"], "long/train.bin: a conversation of it takes", "--context 16"
    )
    assert_one_sentence(ended["too little to mix in"], "tokens, but --block-size 1000000 needs")
    assert_one_sentence(ended["mixed with what was imported"], "It was imported. Or pass --mix 0")
    gone = "--mix takes text that runs/moved was trained on"
    assert_one_sentence(ended["nothing to mix in"], gone, "gone: no such folder", "--mix 0")


# Children train and go on, each killed at a flush to disk; the parent loads torch once for all.
KILLED = """
import pathlib, sys
import train.setup.autotune
from tests.train.runs import killed_at_flush, pretrain
from train.pretrain import resume_run, weights_of
from train.signals import StopRequest

folder = pathlib.Path(sys.argv[1])
train.setup.autotune.MEASURE_S = 0.0
base = weights_of(folder / "runs", "base")

def tune(name):
    pretrain(
        folder / "chats", folder, name, init_from=base, ngrams=2, mix=0.25, dropout=0.2,
        max_steps=30, eval_interval=10, save_interval=3, log_interval=1,
    )

tune("whole")
for n in (23, 50, 81):
    run = folder / "runs" / f"killed-{n}"
    assert killed_at_flush(lambda: tune(run.name), n)
    assert killed_at_flush(lambda: resume_run(run, "cpu", StopRequest()), 20)
    assert not killed_at_flush(lambda: resume_run(run, "cpu", StopRequest()), 0)
"""


def test_a_run_killed_again_and_again_equals_one_never_stopped(place: Path) -> None:
    driver = run_python(["-c", KILLED, str(place)], place)
    assert driver.returncode == 0, driver.stderr
    killed = sorted((place / "runs").glob("killed-*"))
    assert len(killed) == 3
    for run in killed:
        assert_same_outcome(run, place / "runs" / "whole")
    first, last = (
        load_file(newest_valid(place / "runs" / name, "latest") / "model.safetensors")
        for name in ("base", "whole")
    )
    assert not torch.equal(first["wte.weight"], last["wte.weight"])
