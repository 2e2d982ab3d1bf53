"""torchrun itself: signals, a process that is killed, several nodes. Each takes ten seconds."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from common.checkpoint import newest_valid
from common.dataset import DataFolder
from common.run_dir import stop_reason
from tests.processes import run_python, start_python
from tests.train.runs import metrics, options

pytestmark = pytest.mark.slow

LONG = {"max_steps": 20_000, "eval_interval": 20_000, "save_interval": 50, "log_interval": 1}
TORCHRUN = ["-m", "torch.distributed.run"]
DEADLINE_S = 60.0  # promised for a job of which a process died


def pretrain(data: DataFolder, *more: str, **changed: object) -> list[str]:
    settings = options(**({"compile": "off"} | changed))
    return ["-m", "train", "pretrain", "--data", str(data.path), *settings, *more]


def wait_for_steps(process: "subprocess.Popen[str]", run: Path) -> None:
    """Wait until the run has made some steps."""
    deadline = time.monotonic() + DEADLINE_S
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 60:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """Return the ids of torchrun's processes, in the order they were started: by rank."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return sorted(map(int, listed.stdout.split()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_the_run_goes_on(
    data: DataFolder, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "runs" / "quern"
    command = [*TORCHRUN, "--nproc-per-node", "2", *pretrain(data, **LONG)]
    with start_python(command, tmp_path) as process:
        wait_for_steps(process, run)
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    assert "everything saved. Go on: python -m train resume quern" in said
    saved = int(newest_valid(run, "latest").name.removeprefix("step-"))
    assert saved == metrics(run)[-1]["step"]
    longer = ["-m", "train", "resume", "quern", "--device", "cpu", "--max-steps", str(saved + 3)]
    went_on = run_python([*TORCHRUN, "--nproc-per-node", "2", *longer], tmp_path)
    assert went_on.returncode == 0, went_on.stderr
    assert stop_reason(run) == f"all {saved + 3:,} steps are made"
    assert [line["step"] for line in metrics(run)] == list(range(1, saved + 4))


def test_a_process_that_is_killed_ends_the_job_within_a_minute_with_the_reason(
    data: DataFolder, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "quern"
    command = [*TORCHRUN, "--nproc-per-node", "2", *pretrain(data, **LONG)]
    with start_python(command, tmp_path) as process:
        wait_for_steps(process, run)
        os.kill(workers(process)[1], signal.SIGKILL)
        start = time.monotonic()
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert time.monotonic() - start < DEADLINE_S
    assert "Error: process 0 of 2: another process has ended" in said
    assert "Signal 9 (SIGKILL) received" in said
    assert newest_valid(run, "latest").name >= "step-00000050"


def test_two_nodes_that_meet_by_rendezvous_train_one_run(data: DataFolder, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = [
        "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-id", "quern", "--rdzv-endpoint", f"localhost:{port}",
    ]  # fmt: skip
    command = [*TORCHRUN, *meeting, *pretrain(data, "--shard", "--run-name", "wide")]
    nodes = [start_python(command, tmp_path) for _ in range(2)]
    said = [node.communicate(timeout=2 * DEADLINE_S)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum("2 processes x 1 x 2 rows of 16" in each for each in said) == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["wide"]
    assert stop_reason(tmp_path / "runs" / "wide") == "all 12 steps are made"
