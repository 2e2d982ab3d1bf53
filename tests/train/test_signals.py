"""Signals at any moment of a real process: nothing is lost, and each has its exit code."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from common.checkpoint import newest_valid
from common.dataset import DataFolder
from common.run_dir import checkpoints
from tests.processes import run_python
from tests.terminal import Terminal
from tests.train.runs import metrics, options
from train.pretrain import resume_run
from train.signals import StopRequest

# For each case a child, forked once torch is loaded, runs the command in a folder of its own and
# sends itself a signal whenever it comes by the function named.
AT = """
import importlib, json, os, runpy, signal, sys
import train.setup.autotune, train.pretrain

train.setup.autotune.MEASURE_S = 0.0
for folder, module, name, number, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.makedirs(folder)
        os.chdir(folder)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
        if folder.endswith("nohup"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        whole = getattr(importlib.import_module(module), name)
        def there(*given, **options):
            os.kill(os.getpid(), number)
            return whole(*given, **options)
        setattr(importlib.import_module(module), name, there)
        sys.argv[1:] = arguments
        code = 0
        try:
            runpy.run_module("train", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
LONG = {"max_steps": 100_000, "eval_interval": 100_000, "save_interval": 10, "log_interval": 10}
SHORT = {"max_steps": 4, "eval_interval": 4}
# name -> where, which signal, and the length of the run
CASES = {
    "SIGINT": ("train.trainer.append_metrics", signal.SIGINT, LONG),
    "SIGTERM": ("train.trainer.append_metrics", signal.SIGTERM, LONG),
    "SIGUSR1": ("train.trainer.append_metrics", signal.SIGUSR1, LONG),
    "SIGHUP": ("train.trainer.append_metrics", signal.SIGHUP, LONG),
    "nohup": ("train.trainer.append_metrics", signal.SIGHUP, SHORT),
    # from the terminal that goes, and from its shell
    "hung up twice": ("common.checkpoint._write_manifest", signal.SIGHUP, LONG),
    # the first manifest is that of step 10, the second that of the stop
    "twice": ("common.checkpoint._write_manifest", signal.SIGTERM, LONG),
    "measuring": ("train.setup.autotune.step_time", signal.SIGUSR1, LONG),
    "planning": ("train.setup.autotune.make_plan", signal.SIGINT, LONG),
    "begun": ("train.pretrain.write_json", signal.SIGTERM, LONG),
    "planned": ("train.pretrain.summary_lines", signal.SIGTERM, LONG),
    "assembled": ("train.pretrain.make_optimizer", signal.SIGTERM, LONG),
    "last evaluation": ("train.loop.sample_lines", signal.SIGTERM, SHORT),
}
Ended = dict[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module")
def ended(data: DataFolder, place: Path) -> Ended:
    """Return how the run of each case ended; it is in ``place``/CASE/runs/tiny."""
    cases = [
        [
            str(place / case), *where.rsplit(".", 1), number,
            ["pretrain", "--data", str(data.path), "--run", "tiny", *options(**length)],
        ]
        for case, (where, number, length) in CASES.items()
    ]  # fmt: skip
    driver = run_python(["-c", AT, json.dumps(cases)], place)
    assert driver.returncode == 0, driver.stderr
    return {
        case: subprocess.CompletedProcess(
            case, int(code), "", (place / case / "stderr").read_text(encoding="utf-8")
        )
        for case, code in zip(CASES, driver.stdout.split(), strict=True)
    }


@pytest.mark.parametrize(
    ("case", "code"),
    [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGHUP", 129), ("hung up twice", 129)],
)
def test_each_signal_has_its_exit_code_and_the_step_is_saved(
    ended: Ended, place: Path, case: str, code: int
) -> None:
    assert ended[case].returncode == code, ended[case].stderr
    assert (
        ended[case]
        .stderr.splitlines()[-1]
        .startswith("Stopped after step 11, everything saved. Go on: python -m train resume tiny")
    )
    assert newest_valid(place / case / "runs" / "tiny", "latest").name == "step-00000011"


def test_under_nohup_a_hangup_is_not_heeded(ended: Ended, place: Path) -> None:
    assert ended["nohup"].returncode == 0, ended["nohup"].stderr
    assert metrics(place / "nohup" / "runs" / "tiny")[-1]["ended"] == "all 4 steps are made"


@pytest.mark.slow
def test_where_the_terminal_goes_all_is_saved(data: DataFolder, tmp_path: Path) -> None:
    command = ["-m", "train", "pretrain", "--data", str(data.path), "--run", "tiny"]
    with Terminal([*command, *options(**LONG)], tmp_path, width=100) as terminal:
        terminal.see("step 50/")
        terminal.hang_up()
        assert terminal.process.wait(60) == 129
    run = tmp_path / "runs" / "tiny"
    assert newest_valid(run, "latest") == checkpoints(run)[-1]
    assert metrics(run)[-1]["step"] <= int(checkpoints(run)[-1].name[-8:])
    assert not list(run.glob("*.tmp"))


def test_a_second_signal_leaves_at_once_and_nothing_half_written_is_taken(
    ended: Ended, place: Path
) -> None:
    assert ended["twice"].returncode == -signal.SIGTERM
    run = place / "twice" / "runs" / "tiny"
    assert [folder.name for folder in checkpoints(run)] == ["step-00000010"]
    assert newest_valid(run, "latest") == run / "step-00000010"
    assert list(run.glob("*.tmp"))


@pytest.mark.parametrize(("case", "code"), [("measuring", 138), ("planning", 130)])
def test_a_signal_while_planning_ends_at_once_and_leaves_no_run(
    ended: Ended, place: Path, case: str, code: int
) -> None:
    assert ended[case].returncode == code
    assert ended[case].stderr == "Stopped before the first step: nothing is lost.\n"
    assert not (place / case / "runs").exists()


@pytest.mark.parametrize("case", ["begun", "planned", "assembled"])
def test_a_signal_between_plan_and_first_step_saves_a_step_that_can_be_resumed(
    ended: Ended, place: Path, case: str
) -> None:
    assert ended[case].returncode == 143, ended[case].stderr
    assert "Stopped after step 1, everything saved." in ended[case].stderr
    assert newest_valid(place / case / "runs" / "tiny", "latest").name == "step-00000001"


def test_a_signal_in_the_last_evaluation_leaves_a_finished_run(ended: Ended, place: Path) -> None:
    assert ended["last evaluation"].returncode == 0, ended["last evaluation"].stderr
    run = place / "last evaluation" / "runs" / "tiny"
    before = metrics(run)
    assert before[-1]["ended"] == "all 4 steps are made"
    assert resume_run(run, "cpu", StopRequest()) is None
    assert metrics(run) == before


# as torchrun's SIGTERM comes for the end of another process, which this one is about to tell
FAILING = """
import contextlib, os
import click
from common import errors
from train.signals import StopRequest

@click.command()
def work():
    with contextlib.ExitStack() as stack:
        stack.callback(os.kill, os.getpid(), 15)
        stop = stack.enter_context(StopRequest())
        stop.wait_for_steps()
        raise errors.UserError("another process has ended")

errors.run(work, "work")
"""


def test_an_error_on_its_way_is_told_though_a_signal_comes(tmp_path: Path) -> None:
    ended = run_python(["-c", FAILING], tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "Error: another process has ended\n")
