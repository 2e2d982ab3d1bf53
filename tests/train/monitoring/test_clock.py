"""The clock of a run: all seconds, but none in which its process is held."""

import signal
import time
from pathlib import Path

import pytest

from common.dataset import DataFolder
from tests.processes import start_python
from tests.train.runs import metrics, pretrain
from train.loop import update
from train.monitoring.clock import Clock
from train.monitoring.metrics import Update
from train.signals import StopRequest
from train.trainer import Trainer

HELD = """
import sys, time
from train.signals import StopRequest
with StopRequest() as stop:
    stop.clock.lap()
    print("ready", flush=True)
    sys.stdin.readline()
    print(stop.clock.lap(0.01), flush=True)
    time.sleep(0.2)
    print(stop.clock.lap(0.01), flush=True)
"""


def test_a_lap_in_which_a_process_was_held_counts_as_expected_and_the_next_in_full(
    tmp_path: Path,
) -> None:
    with start_python(["-c", HELD], tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        held, after = (float(process.stdout.readline()) for _ in range(2))
        assert process.wait(30) == 0
    assert held == 0.01
    assert after >= 0.2


def test_laps_leave_nothing_out() -> None:
    clock = Clock()
    laps = [clock.lap() for _ in range(100)]
    assert sum(laps) == pytest.approx(clock._lap - clock.start)
    assert min(laps) >= 0


@pytest.mark.usefixtures("quick_plan")
def test_the_seconds_of_a_run_are_those_that_it_was_not_held(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()

    def held_at_5(trainer: Trainer, step: int, lr: float) -> Update:
        if step == 5:
            time.sleep(1.0)
            stop.clock.note_held()  # as SIGCONT does
        return update(trainer, step, lr)

    monkeypatch.setattr("train.loop.update", held_at_5)
    last = metrics(pretrain(data.path, tmp_path, stop=stop))[-1]
    assert last["ended"]
    assert 0 < last["seconds"] <= time.perf_counter() - stop.clock.start - 1.0 + 0.5
