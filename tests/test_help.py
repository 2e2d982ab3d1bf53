"""--help of every command: quick, complete, and without the heavy packages."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from tests.processes import run_python

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "datasets", "gigatoken", "tiktoken", "numpy", "zstandard"}
MOST_CPU_S = 0.3  # beyond a bare interpreter that imports click
STAGES = {stage: import_module(f"{stage}.cli").main for stage in ("prepare", "train", "sample")}
COMMANDS = [
    [stage, *verb]
    for stage, group in STAGES.items()
    for verb in [[], *([v] for v in group.commands)]
]


def cpu_seconds(arguments: list[str]) -> float:
    """Return the least processor time of three runs: what else the machine does only adds to it."""
    times = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times)


@pytest.fixture(scope="module")
def bare_s() -> float:
    return cpu_seconds(["-c", "import click"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_costs_little_processor_time(command: list[str], bare_s: float) -> None:
    assert cpu_seconds(["-m", *command, "--help"]) - bare_s < MOST_CPU_S


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "command",
    [
        ["train", "pretrain", "--data", "nowhere"], ["train", "resume", "none"],
        ["train", "compare", "none"], ["train", "presets"],
        ["sample", "chat", "none"], ["sample", "generate", "none"],
        ["sample", "score", "-", "--run", "none"], ["sample", "serve", "none", "--port", "0"],
        ["sample", "export", "none", "out", "--to", "hf"],
        ["train", "import", "none", "--run", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_signal_while_numpy_is_imported_within_torch_is_not_lost(
    command: list[str], tmp_path: Path
) -> None:
    stub = "import os, time\nos.kill(os.getpid(), 15)\ntime.sleep(60)\n"
    (tmp_path / "numpy.py").write_text(stub, encoding="utf-8")
    ended = run_python(["-m", *command], tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_while_a_stage_is_imported_shows_no_traceback(stage: str, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    ended = run_python(["-m", stage], tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize(("stage", "group"), STAGES.items())
def test_every_option_says_what_it_is_for(stage: str, group: click.Group) -> None:
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{stage} {name} {parameter.opts}"


def test_names_that_scripts_rely_on_are_options_of_pretrain() -> None:
    options = {opt for p in STAGES["train"].commands["pretrain"].params for opt in p.opts}
    promised = (
        "--max-steps --tokens-per-step --eval-interval --save-interval --seed --device --n-layer "
        "--n-head --n-embd --block-size --dropout --learning-rate --runs-dir --data --run --preset "
        "--minutes"
    )
    assert options >= set(promised.split())


@pytest.mark.parametrize("stage", STAGES)
def test_a_mistyped_option_is_wrong_usage_and_names_the_near_one(stage: str) -> None:
    command = {"prepare": ["text", "--tokeniser"], "train": ["pretrain", "--max-step"]}.get(
        stage, ["chat", "--temperatur"]
    )
    run = subprocess.run(
        [sys.executable, "-m", stage, *command, "1"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "Did you mean" in run.stderr or "Possible options" in run.stderr


def test_help_names_the_default_that_is_used() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "train", "pretrain", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = " ".join(run.stdout.split())
    for name, default in [
        ("--momentum", "0.95"), ("--n-layer", "the preset's"),
        ("--activation-checkpointing", "off"),
    ]:  # fmt: skip
        assert f"[default: ({default})" in words.partition(f"{name} ")[2].partition("]")[0] + "]"
    for command in ("pretrain", "finetune", "preference"):
        words = " ".join(run_python(["-m", "train", command, "--help"], ROOT).stdout.split())
        assert "] [default:" not in words
