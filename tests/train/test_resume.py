"""A run that was stopped in any way, and resumed, is the run that was never stopped."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.dataset import DataFolder
from common.run_dir import stop_reason
from tests.processes import TIMEOUT_S, assert_one_sentence, run_python, start_python
from tests.train.runs import assert_same_outcome, metrics, options, pretrain
from train.pretrain import resume_run
from train.signals import StopRequest

LONG = {"max_steps": 360, "eval_interval": 180, "save_interval": 20, "log_interval": 10}
N_STEPS = LONG["max_steps"]


def pretrain_command(data: DataFolder) -> list[str]:
    return ["-m", "train", "pretrain", "--data", str(data.path), "--run", "tiny", *options(**LONG)]


RESUME = ["-m", "train", "resume", "tiny", "--device", "cpu"]


def last_saved_step(run: Path) -> int:
    try:
        return int((run / "latest").read_text(encoding="utf-8").strip().rpartition("-")[2])
    except FileNotFoundError:
        return 0


def signal_after(
    arguments: list[str], folder: Path, step: int, number: signal.Signals
) -> "subprocess.CompletedProcess[str]":
    """Start a command, send it a signal once it has saved ``step``, and wait for its end."""
    with start_python(arguments, folder) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while last_saved_step(folder / "runs" / "tiny") < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def unstopped(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unstopped")
    ended = run_python(pretrain_command(data), folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "runs" / "tiny"


def assert_stopped(
    ended: "subprocess.CompletedProcess[str]", code: int, run: Path, step: int
) -> None:
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    saved = last_saved_step(run)
    assert step <= saved < N_STEPS
    assert ended.stderr.splitlines()[-1] == (
        f"Stopped after step {saved}, everything saved. Go on: python -m train resume tiny"
    )


@pytest.fixture(scope="module")
def interrupted_once(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that Ctrl-C ended early; not to be changed."""
    folder = tmp_path_factory.mktemp("interrupted")
    ended = signal_after(pretrain_command(data), folder, 60, signal.SIGINT)
    run = folder / "runs" / "tiny"
    assert_stopped(ended, 130, run, 60)
    return run


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> Path:
    """Return a copy of it, in ``tmp_path``/runs."""
    return Path(shutil.copytree(interrupted_once, tmp_path / "runs" / "tiny"))


def test_a_run_killed_again_and_again_equals_one_never_stopped(
    data: DataFolder, unstopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    for command, step in ((pretrain_command(data), 40), (RESUME, 160), (RESUME, 240)):
        ended = signal_after(command, tmp_path, step, signal.SIGKILL)
        assert ended.returncode == -signal.SIGKILL
        assert last_saved_step(run) < N_STEPS
        assert (command == RESUME) == (f"resuming    {Path('runs/tiny')}/step-" in ended.stderr)
    ended = run_python(RESUME, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "runs/tiny/step-00000360: val loss " in ended.stdout + ended.stderr
    assert_same_outcome(run, unstopped)


def test_signals_let_the_step_end_save_and_say_how_to_go_on(
    unstopped: Path, interrupted: Path, tmp_path: Path
) -> None:
    newest = [part for part in RESUME if part != "tiny"]
    ended = signal_after(newest, tmp_path, 200, signal.SIGTERM)
    assert_stopped(ended, 143, interrupted, 200)
    assert run_python(RESUME, tmp_path).returncode == 0
    assert_same_outcome(interrupted, unstopped)
    again = run_python(RESUME, tmp_path)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "runs/tiny is finished: all 360 steps are made.\n"


def test_resume_steps_back_over_damaged_checkpoints_and_says_so(
    unstopped: Path, interrupted: Path
) -> None:
    folders = sorted(interrupted.glob("step-????????"))
    assert len(folders) == 2
    weights = folders[1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x10
    weights.write_bytes(content)
    shutil.copytree(folders[1], interrupted / "step-00000450.tmp")  # of a save that was killed

    ended = run_python(RESUME, interrupted.parents[1])
    assert ended.returncode == 0, ended.stderr
    relative = [folder.relative_to(interrupted.parents[1]) for folder in folders]
    assert (
        f"{relative[1]}/model.safetensors: its content changed after it was written (SHA-256). "
        "Stepping back to the checkpoint before.\n"
        f"Using {relative[0]} instead."
    ) in ended.stderr
    assert_same_outcome(interrupted, unstopped)
    assert not list(interrupted.glob("*.tmp"))


def test_resume_without_a_sound_checkpoint_is_one_sentence(interrupted: Path) -> None:
    for manifest in interrupted.glob("step-*/manifest.json"):
        manifest.unlink()
    ended = run_python(RESUME, interrupted.parents[1])
    assert_one_sentence(
        ended, "runs/tiny: holds no checkpoint that verifies. Train it anew", "finetune"
    )


@pytest.mark.usefixtures("quick_plan")
def test_the_last_checkpoint_of_a_finished_run_can_be_made_again(
    data: DataFolder, tmp_path: Path
) -> None:
    whole = pretrain(data.path, tmp_path, "whole")
    shutil.copytree(whole, tmp_path / "runs" / "damaged")
    (tmp_path / "runs" / "damaged" / "step-00000012" / "model.safetensors").unlink()
    resume_run(tmp_path / "runs" / "damaged", "cpu", StopRequest())
    assert_same_outcome(tmp_path / "runs" / "damaged", whole)


# For N = 1, 2, ... a child trains and is killed at the Nth flush to disk, another resumes; a third
# may be killed in between. The parent trains first, so that its children need not load anything.
KILLED_AT_EACH_FLUSH = """
import pathlib, sys
import train.setup.autotune
from tests.train.runs import killed_at_flush, pretrain
from train.pretrain import resume_run
from train.signals import StopRequest

data, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
train.setup.autotune.MEASURE_S = 0.0
short = {"max_steps": 6, "eval_interval": 4, "save_interval": 3, "log_interval": 1}

pretrain(data, folder, "unstopped", **short)
for n in range(1, 1000):
    name = f"killed-at-{n:03d}"
    run = folder / "runs" / name
    if not killed_at_flush(lambda: pretrain(data, folder, name, **short), n):
        break
    if (run / "latest").exists():
        if n % 3 == 0:
            killed_at_flush(lambda: resume_run(run, "cpu", StopRequest()), n // 3)
        killed_at_flush(lambda: resume_run(run, "cpu", StopRequest()), 0)
print(n - 1)
"""


def test_a_run_killed_at_any_write_equals_one_never_stopped(
    data: DataFolder, tmp_path: Path
) -> None:
    script = ["-c", KILLED_AT_EACH_FLUSH, str(data.path), str(tmp_path)]
    driver = run_python(script, tmp_path)
    assert driver.returncode == 0, driver.stderr
    assert "Traceback" not in driver.stderr
    runs = [run for run in (tmp_path / "runs").glob("killed-at-*") if (run / "latest").exists()]
    assert len(runs) > 20
    for run in runs:
        assert_same_outcome(run, tmp_path / "runs" / "unstopped")
        assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


# Children train and go on, and each is killed after a random part of the time that a whole run
# takes; after each kill the run is read. The parent loads torch once for all of them.
KILLED_AT_RANDOM = """
import os, pathlib, random, signal, sys, time
import torch
import train.setup.autotune
from common.checkpoint import load_checkpoint, newest_valid
from tests.train.runs import final_bytes, pretrain
from train.pretrain import resume_run
from train.signals import StopRequest

data, folder, n_kills = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
train.setup.autotune.MEASURE_S = 0.0
long = {"max_steps": 120, "eval_interval": 40, "save_interval": 3, "log_interval": 1}
draw = random.Random(int(sys.argv[4])).uniform
start = time.monotonic()
pretrain(data, folder, "unstopped", **long)
whole_s = time.monotonic() - start

def killed(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    time.sleep(draw(0, 0.4 * whole_s))
    os.kill(child, signal.SIGKILL)  # a child that has ended is not yet waited for
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

n, number = 0, 0
while n < n_kills:
    number += 1
    run = folder / "runs" / f"killed-{number:02d}"
    going = killed(lambda: pretrain(data, folder, run.name, **long))
    while going and (run / "latest").exists():
        n += 1
        load_checkpoint(newest_valid(run, "latest"), torch.device("cpu"))
        going = killed(lambda: resume_run(run, "cpu", StopRequest()))
print(n, number)
"""


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_equals_one_never_stopped(
    data: DataFolder, tmp_path: Path
) -> None:
    seed = time.time_ns() % 10_000
    script = ["-c", KILLED_AT_RANDOM, str(data.path), str(tmp_path), "20", str(seed)]
    driver = run_python(script, tmp_path)
    assert driver.returncode == 0, (seed, driver.stderr)
    ended = [run for run in (tmp_path / "runs").glob("killed-*") if stop_reason(run) is not None]
    assert ended, seed
    for run in ended:
        assert_same_outcome(run, tmp_path / "runs" / "unstopped")
