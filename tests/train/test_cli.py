"""The commands of train as processes: a plan and progress, or one sentence on what to mend."""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from common.checkpoint import load_checkpoint, verify_checkpoint
from common.dataset import DataFolder, open_data
from common.device import cpu_has_bfloat16
from common.run_dir import checkpoints
from tests.processes import assert_one_sentence, run_each, run_python
from tests.tiny import prepare_text, words
from tests.train.runs import assert_same_outcome, metrics, options, pretrain
from train.cli import main
from train.presets import PRESETS
from train.recovery import unfinished_run
from train.setup.regularization import OF_ALL_NGRAMS, regularization

RESUME = ["-m", "train", "resume", "--device", "cpu"]
Ended = dict[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def workplace(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good and bad data folders, and runs to resume on them."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("data", "no-meta", "cut", "changed", "other-vocabulary"):
        shutil.copytree(data.path, folder / name)
    (folder / "no-meta" / "meta.json").unlink()
    train_bin = folder / "cut" / "train.bin"
    train_bin.write_bytes(train_bin.read_bytes()[:1000])
    (folder / "short").mkdir()
    prepare_text(words(40), folder / "short")
    without_val = ["text", "short/source.txt", "--val-fraction", "0", "--out", "empty"]
    assert run_python(["-m", "prepare", *without_val], folder).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        for name in ("changed", "other-vocabulary", "gone"):
            shutil.copytree(data.path, folder / "gone", dirs_exist_ok=True)
            run = pretrain(folder / name, folder, name, max_steps=4)
            forget_the_end(run)
    shutil.rmtree(folder / "gone")
    replace_data(folder / "changed", words(1000, seed=5))
    replace_data(folder / "other-vocabulary", words(1000).replace("q", "x"))
    return folder


def forget_the_end(run: Path) -> None:
    """Make a run look as if it was killed before its last evaluation."""
    (run / "metrics.jsonl").write_text("", encoding="utf-8")


def replace_data(folder: Path, text: str) -> None:
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("made"), ignore_errors=True)
    folder.with_name("made").mkdir()
    shutil.move(prepare_text(text, folder.with_name("made")).path, folder)


# name -> the command, and words of its one sentence
BAD: dict[str, tuple[list[str], list[str]]] = {
    "no data folder": (
        ["pretrain", "--data", "nowhere"],
        ["nowhere: no such folder. Make it: python -m prepare text SRC --out nowhere"],
    ),
    "no meta.json": (
        ["pretrain", "--data", "no-meta"],
        ["no-meta/meta.json: missing, so no-meta is no data set"],
    ),
    "a .bin cut short": (
        ["pretrain", "--data", "cut"],
        ["cut/train.bin: 1,000 bytes, but meta.json promises ", "It was cut short"],
    ),
    "a split without a token": (
        ["pretrain", "--data", "empty", "--block-size", "8"],
        ["empty/val.bin: is empty", "another --val-fraction"],
    ),
    "a network too large for any machine": (
        ["pretrain", "--data", "data", "--ngrams", "2", "--ngram-rows", "1000000000000"],
        ["out of memory in making and measuring the network"],
    ),
    "a split shorter than the context": (
        ["pretrain", "--data", "short/data", "--block-size", "64"],
        ["short/data/val.bin: holds ", "--block-size 64 needs 65", "pass --block-size 19 or less"],
    ),
    "heads that do not divide the channels": (
        ["pretrain", "--n-embd", "30", "--n-head", "4"],
        ["--n-embd is 30 and --n-head is 4: the channels must divide evenly among the heads."],
    ),
    "steps and minutes": (
        ["pretrain", "--max-steps", "5", "--minutes", "1"],
        ["--max-steps and --minutes are both given"],
    ),
    "a device that is not here": (
        ["pretrain", "--device", "cuda:63"],
        ["--device cuda:63: this machine cannot use it", "Pass --device auto."],
    ),
    "a rate that is no number": (
        ["pretrain", "--learning-rate", "nan"],
        ["--learning-rate is nan: it must be a finite number."],
    ),
    "a rate at which training diverges": (
        ["pretrain", *options(learning_rate=1e30, eval_interval=1, save_interval=1)],
        ["step 11: ", "the run has diverged", "a lower --learning-rate than 1.25e+29."],
    ),
    "a runs folder that is a file": (
        ["pretrain", *options(), "--runs-dir", "data/meta.json/runs"],
        ["data/meta.json/runs/quern: cannot be made (Not a directory)."],
    ),
    "an unknown run": (
        ["resume", "nothing"],
        ["runs/nothing: no such run. Runs in runs: changed, "],
    ),
    "no runs at all": (
        ["resume", "--runs-dir", "nowhere"],
        ["nowhere: no run that was trained here, with a checkpoint in it. Train one first"],
    ),
    "data that changed": (
        ["resume", "changed"],
        ["/changed: SHA-256 ", "the data changed since. Prepare it as it was, or train a new run."],
    ),
    "data with another vocabulary": (
        ["resume", "other-vocabulary"],
        ["/other-vocabulary: its vocabulary is not the one of runs/other-vocabulary/step-00000004"],
    ),
    "data that is gone": (
        ["resume", "gone"],
        ["/gone: no such folder. Make it: python -m prepare"],
    ),
}


@pytest.fixture(scope="module")
def bad_endings(workplace: Path) -> Ended:
    """Return how each command of BAD ended."""
    return run_each({name: ["train", *command] for name, (command, _) in BAD.items()}, workplace)


@pytest.mark.parametrize("name", BAD)
def test_what_a_person_can_mend_is_one_sentence(bad_endings: Ended, name: str) -> None:
    assert_one_sentence(bad_endings[name], *BAD[name][1])


def test_what_diverged_left_checkpoints_that_are_numbers(
    bad_endings: Ended, workplace: Path
) -> None:
    assert bad_endings
    folders = checkpoints(workplace / "runs" / "quern")
    assert folders
    for folder in folders:
        verify_checkpoint(folder)
        for weights in load_checkpoint(folder, torch.device("cpu")).model.parameters():
            assert weights.isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--n-layer", "0"],
        ["pretrain", "--depth", "3"],
        ["pretrain", "--preset", "huge"],
        ["pretrain", "--max-steps", "many"],
        ["resume", "one", "two"],
        ["start"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_resume_says_of_an_option_of_new_runs_why_it_is_none_here() -> None:
    result = CliRunner().invoke(main, ["resume", "mine", "--learning-rate", "0.1"])
    assert result.exit_code == 2
    assert "--learning-rate is of a run's beginning, and stays as it was." in result.stderr
    assert "pretrain --init-from RUN --learning-rate ..." in result.stderr
    result = CliRunner().invoke(main, ["resume", "mine", "--learn", "0.1"])
    assert "No such option '--learn'" in result.stderr


def test_a_run_by_minutes_shows_a_plan_then_progress_then_where_it_is(
    data: DataFolder, tmp_path: Path
) -> None:
    settings = options(log_interval=1)  # how many steps there are is up to the machine's speed
    at = settings.index("--max-steps")
    del settings[at : at + 2]
    command = ["-m", "train", "pretrain", "--data", str(data.path), "--minutes", "0.07", *settings]
    command += ["--eval-interval", "200", "--save-interval", "0"]
    ended = run_python(command, tmp_path)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "runs" / "quern"
    written = json.loads((run / "config.json").read_bytes())
    config = written["train"]
    max_steps = config["max_steps"]
    n_epochs = 64 * max_steps / data.n_tokens("train")
    settings_of_both = config | written["model"]
    followed = PRESETS["tiny"].by_epochs - {"dropout"}  # which was given
    for name, value in regularization(followed, n_epochs, OF_ALL_NGRAMS).items():
        assert settings_of_both[name] == pytest.approx(value, abs=1e-4), name
    last_step = metrics(run)[-1]["step"]  # that of the plan, or what the clock made of it
    state = json.loads((run / f"step-{last_step:08d}" / "state.json").read_bytes())
    assert state["model"] == written["model"]
    assert [max_steps, *(n for _, n in state["progress"]["decisions"])][-1] == last_step
    assert config["minutes"] is None
    assert written["time_limit"]["seconds"] == pytest.approx(4.2)
    assert config["save_interval"] == 200
    assert (run / "latest").read_text(encoding="utf-8") == f"step-{last_step:08d}\n"

    lines = ended.stderr.splitlines()
    first_step = next(i for i, line in enumerate(lines) if line.startswith(("step ", "eval ")))
    plan = "\n".join(lines[:first_step])
    for words_of_plan in (
        "run         runs/quern, preset tiny",
        f"device      cpu, {'bfloat16' if cpu_has_bfloat16() else 'float32'}: ",
        " parameters: 1 layers, 2 heads, 16 channels, context 16",
        f"{data.n_tokens('train'):,} tokens to train on",
        "64 tokens: 2 x 2 rows of 16",
        f"length      {max_steps:,} steps, {64 * max_steps:,} tokens, ",
        " epochs; evaluation each 200 steps",
        "memory      ",  # more or less of it, by what the process took that began this one
        " GB\nexpected    ",
    ):
        assert words_of_plan in plan
    progress = [line for line in lines[first_step:] if line.startswith("step ")]
    assert progress
    number = r"[\d,]+"
    for line in progress:
        assert re.fullmatch(
            rf"step {number}/{number} \| loss \d\.\d{{4}} \| lr \d\.\de-\d\d \| "
            rf"{number} tok/s \| eta [\dms ]+",
            line,
        )
    evaluations = [line for line in lines if line.startswith("eval ")]
    assert len(evaluations) == -(-last_step // 200)
    score = r"\d\.\d{4} \(\d\.\d{3} bits/byte\)"
    assert re.fullmatch(
        rf"eval {last_step:,}/{last_step:,} \| train loss {score} \| val loss {score}"
        r"( \| best so far)?",
        evaluations[-1],
    )
    assert re.search(
        r"^runs/quern/step-\d{8}: val loss \d\.\d{4}, the best of this run\. "
        r"Talk to it: python -m sample chat quern$",
        ended.stdout + ended.stderr,
        re.MULTILINE,
    )


@pytest.mark.usefixtures("quick_plan")
def test_a_share_of_n_grams_that_is_asked_for_is_taken_as_it_is(
    data: DataFolder, in_tmp_path: Path
) -> None:
    settings = options(max_steps=2, ngram_dropout=0.5)
    result = CliRunner().invoke(main, ["pretrain", "--data", str(data.path), *settings])
    assert result.exit_code == 0, result.output
    (written,) = (in_tmp_path / "runs").glob("*/config.json")
    assert json.loads(written.read_bytes())["model"]["ngram_dropout"] == 0.5


@pytest.mark.usefixtures("quick_plan")
def test_resume_on_pretrain_goes_on_with_an_unfinished_run_of_the_same_data(
    data: DataFolder, in_tmp_path: Path
) -> None:
    def pretrain_again(data_path: Path) -> None:
        result = CliRunner().invoke(
            main, ["pretrain", "--data", str(data_path), "--run", "tiny", "--resume", *options()]
        )
        assert result.exit_code == 0, result.output

    run = pretrain(data.path, in_tmp_path)
    other = pretrain(data.path, in_tmp_path, "other-tiny")
    whole = Path(shutil.copytree(run, in_tmp_path / "whole"))
    os.utime(run / "latest")
    for folder in (run, other):  # as they were after step 8
        shutil.rmtree(folder / "step-00000012")
        (folder / "latest").write_text("step-00000008\n", encoding="utf-8")
        forget_the_end(folder)
    forget_the_end(whole)
    pretrain_again(data.path)
    assert sorted(folder.name for folder in (in_tmp_path / "runs").iterdir()) == [
        "other-tiny",
        "tiny",
    ]
    assert [line["step"] for line in metrics(run)] == [10, 12]
    last = "step-00000012/model.safetensors"
    assert (run / last).read_bytes() == (whole / last).read_bytes()

    pretrain_again(data.path)  # it is finished now
    assert_same_outcome_of_second(in_tmp_path, whole)
    (in_tmp_path / "new").mkdir()
    changed = prepare_text(words(1000, seed=5), in_tmp_path / "new")
    pretrain_again(changed.path)
    third = json.loads((in_tmp_path / "runs" / "tiny-3" / "config.json").read_bytes())
    assert third["data"]["sha256"] == changed.sha256


def assert_same_outcome_of_second(folder: Path, whole: Path) -> None:
    last = "step-00000012/model.safetensors"
    assert (folder / "runs" / "tiny-2" / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.usefixtures("quick_plan")
def test_a_name_that_merely_ends_alike_is_another_run(data: DataFolder, tmp_path: Path) -> None:
    forget_the_end(pretrain(data.path, tmp_path, "tiny-wheat"))
    forget_the_end(pretrain(data.path, tmp_path, "tiny-2024"))
    assert unfinished_run(tmp_path / "runs", "tiny", data.path) is None
    forget_the_end(pretrain(data.path, tmp_path, "tiny-2"))
    assert unfinished_run(tmp_path / "runs", "tiny", data.path) == (tmp_path / "runs" / "tiny-2")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def limit_file_size(size_bytes: int) -> Callable[[], None]:
    """Return what makes a process unable to write files larger than this: a disk that is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return limit


@pytest.mark.usefixtures("quick_plan")
def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(
    data: DataFolder, tmp_path: Path
) -> None:
    run = pretrain(data.path, tmp_path)
    shutil.rmtree(run / "step-00000012")
    (run / "latest").write_text("step-00000008\n", encoding="utf-8")
    (run / "best").write_text("step-00000008\n", encoding="utf-8")
    before = files_of(run / "step-00000008")
    # config.json and the metrics fit, the weights do not
    ended = run_python(RESUME, tmp_path, before=limit_file_size(10_000))
    assert_one_sentence(ended, "runs/tiny/step-00000012: cannot be saved (", "as they were")
    assert files_of(run / "step-00000008") == before
    assert run_python(RESUME, tmp_path).returncode == 0
    assert (run / "latest").read_text(encoding="utf-8") == "step-00000012\n"


@pytest.mark.usefixtures("quick_plan")
def test_a_disk_too_full_for_metrics_is_one_sentence(data: DataFolder, tmp_path: Path) -> None:
    run = pretrain(data.path, tmp_path)
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    shutil.rmtree(run / "step-00000012")
    (run / "latest").write_text("step-00000008\n", encoding="utf-8")
    size_bytes = (run / "metrics.jsonl").stat().st_size
    # the lines up to step 8 can be written again, that of step 10 cannot
    ended = run_python(RESUME, tmp_path, before=limit_file_size(size_bytes * 4 // 6))
    assert_one_sentence(ended)
    verify_checkpoint(run / "step-00000008")
    assert run_python(RESUME, tmp_path).returncode == 0
    assert_same_outcome(run, whole)


# Neither is needed once data is prepared.
WITHOUT_PREPARE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gigatoken", "datasets", "transformers", "prepare"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
stage, *arguments = sys.argv[1:]
sys.argv[1:] = arguments
if stage == "train":
    import train.setup.autotune
    train.setup.autotune.MEASURE_S = 0.0
    from train.cli import main
else:
    from sample.cli import main
main(arguments)
"""


def test_train_and_sample_need_nothing_of_prepares(data: DataFolder, tmp_path: Path) -> None:
    def run(*arguments: Any) -> str:
        ended = run_python(["-c", WITHOUT_PREPARE, *map(str, arguments)], tmp_path)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("train", "pretrain", "--data", data.path, *options())
    text = run("sample", "generate", "--prompt", "the quern", "--max-new-tokens", 8)
    assert text.startswith("the quern")


def test_data_is_opened_whatever_the_folder_it_was_moved_to(
    data: DataFolder, tmp_path: Path
) -> None:
    shutil.copytree(data.path, tmp_path / "moved")
    assert open_data(tmp_path / "moved").sha256 == data.sha256


@pytest.mark.parametrize("command", [["pretrain"], ["resume"]], ids=" ".join)
def test_one_of_many_processes_is_refused(command: list[str]) -> None:
    """Else torchrun would start as many runs, each called complete."""
    result = CliRunner().invoke(main, command, env={"WORLD_SIZE": "2"})
    assert result.exit_code == 1
    assert "WORLD_SIZE is 2" in result.stderr
