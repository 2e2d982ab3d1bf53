"""A run of --minutes follows the clock: it ends on time, and what it decided is on record."""

import json
import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.dataset import DataFolder
from tests.train.runs import metrics, pretrain
from tests.train.stops import StopAfter
from train.config import TimeLimit, TrainConfig, TrainPlan, load_settings
from train.distributed.comm import SINGLE_PROCESS
from train.loop import update
from train.monitoring.metrics import Progress, Update
from train.optim.lr_schedule import learning_rate_at, position
from train.pretrain import Changes, resume_run
from train.setup.autotune import MeasuredSpeed, make_plan
from train.setup.replan import Replanner
from train.signals import StopRequest
from train.trainer import Trainer

MINUTES, STEP_S, EVAL_S, SAVE_S = 5.0, 0.03, 3.0, 1.0  # of `tiny` on two cores


def simulated(
    slower_at: Any, minutes: float = MINUTES, measured: float = STEP_S, **settings: Any
) -> tuple[Progress, int]:
    """Return the end of a run on a clock of its own, and its evaluations.

    A step that begins at so many seconds takes ``slower_at`` of them times STEP_S, and so on.
    """
    config = TrainConfig(minutes=minutes, **settings)
    speed = MeasuredSpeed(
        step_s=measured, eval_s=EVAL_S * measured / STEP_S, save_s=SAVE_S, spent_s=3.0,
        batch_size=1, compiled=False,
    )  # fmt: skip
    first, n_evals = make_plan(config, None, speed), 0
    auto = [name for name in ("eval_interval", "save_interval") if name not in settings]
    limit = TimeLimit(seconds=60 * minutes, auto=auto)
    progress = Progress(seconds=3.0, eval_s=speed.eval_s, save_s=SAVE_S, timed_step_s=speed.step_s)
    replanner = Replanner(first, limit, 0, SINGLE_PROCESS)
    while True:
        plan = replanner.plan_at(progress)
        if plan.is_eval_step(progress.step):
            n_evals += 1
            progress.add_save(SAVE_S * slower_at(progress.seconds))
            progress.add_evaluation(EVAL_S * slower_at(progress.seconds))
            if progress.step == plan.max_steps:
                return progress, n_evals
        progress.add_update(Update(1.0, 1.0), 0.0, 1024, STEP_S * slower_at(progress.seconds))


def test_on_a_quiet_machine_the_plan_stays_what_it_was() -> None:
    draw = random.Random(1)
    progress, n_evals = simulated(lambda s: draw.uniform(0.9, 1.1))
    assert progress.decisions == []
    assert progress.seconds == pytest.approx(300, rel=0.02)
    assert n_evals == 3


# How much slower each step is than planned, by the seconds so far.
MACHINES: dict[str, Any] = {
    "five times slower": lambda s: 5.0 if s > 60 else 1.0,
    "a core is taken away for a while": lambda s: 2.0 if 60 < s < 180 else 1.0,
    "slow only while it was measured": lambda s: 0.2 if s > 3 else 1.0,
    "slower near its end": lambda s: 1.8 if s > 285 else 1.0,
    "a browser comes and goes": lambda s: 2.0 if s % 20 < 10 else 1.0,
    "a second's halt near the end": lambda s: 80.0 if 280 < s < 281 else 1.0,
    "a halt every half minute": lambda s: 80.0 if s % 30 < 0.1 else 1.0,
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("settings", [{}, {"eval_interval": 400}], ids=["auto", "each 400 steps"])
def test_a_run_ends_on_time_whatever_the_machine_does(
    machine: str, settings: dict[str, Any]
) -> None:
    progress, n_evals = simulated(MACHINES[machine], **settings)
    assert progress.seconds == pytest.approx(300, rel=0.05)
    assert len(progress.decisions) <= 80
    if settings:
        assert n_evals == -(-progress.step // 400)


def test_where_even_an_evaluation_takes_too_long_only_the_last_one_is_made() -> None:
    progress, n_evals = simulated(lambda s: 100.0 if s > 30 else 1.0)
    assert n_evals == 1
    assert progress.seconds <= 30 + 0.3 * 300 + 100 * (EVAL_S + SAVE_S)


def test_a_plan_made_while_the_machine_was_starved_is_mended_at_once() -> None:
    progress, n_evals = simulated(lambda s: 1.0, measured=50 * STEP_S)
    assert progress.decisions[0][0] < 0.05 * progress.step
    assert progress.seconds == pytest.approx(300, rel=0.05)
    assert progress.step * STEP_S > 0.9 * 300  # nearly all of it in updates
    assert n_evals <= 3


POSITIONS_BY_HAND = [
    ([], {0: 0, 1: 1, 99: 99, 100: 100}),
    ([[50, 75]], {50: 50, 60: 70, 75: 100}),  # half of it in 25 steps: two a step
    ([[50, 75], [60, 90]], {60: 70, 75: 85, 90: 100}),
    ([[10, 11]], {10: 10, 11: 100}),
    ([[0, 400]], {4: 1, 200: 50, 400: 100}),
]


@pytest.mark.parametrize(("decisions", "expected"), POSITIONS_BY_HAND, ids=str)
def test_positions_in_the_schedule_worked_out_by_hand(
    decisions: list[list[int]], expected: dict[int, float]
) -> None:
    for step, place in expected.items():
        assert position(step, 100, decisions) == pytest.approx(place), step


def test_whatever_is_decided_the_position_rises_and_ends_at_the_end_exactly() -> None:
    draw = random.Random(7)
    config = TrainConfig(learning_rate=1.0, warmup_steps=20)
    for _ in range(100):
        planned = end = draw.randint(1, 3000)
        decisions: list[list[int]] = []
        places, step = [position(0, planned, decisions)], 0
        while step < end:
            if step and draw.random() < 0.02:
                end = step + draw.randint(1, 500)
                decisions.append([step, end])
                assert position(step, planned, decisions) == pytest.approx(places[-1])
            step += 1
            places.append(position(step, planned, decisions))
        assert all(before < after for before, after in pairwise(places))
        assert places[-1] == planned
        rates = [learning_rate_at(place, planned, config) for place in places]
        assert 0 < max(rates) <= 1.0


def slowed(monkeypatch: pytest.MonkeyPatch, first: int, more_s: float) -> None:
    """Let updates from ``first`` on take ``more_s`` longer."""

    def slow(trainer: Trainer, step: int, lr: float) -> Update:
        time.sleep(more_s if step >= first else 0.0)
        return update(trainer, step, lr)

    monkeypatch.setattr("train.loop.update", slow)


def assert_the_rate_follows_the_decisions(run: Path) -> list[list[int]]:
    """Hold that every logged rate is a function of its step and the decisions; return these."""
    latest = run / (run / "latest").read_text(encoding="utf-8").strip()
    decisions = json.loads((latest / "state.json").read_bytes())["progress"]["decisions"]
    settings = json.loads((run / "config.json").read_bytes())["train"]
    config, plan = load_settings(settings, "config.json")
    lines = metrics(run)
    assert [[line["step"], line["max_steps"]] for line in lines if "max_steps" in line] == decisions
    for line in lines:
        step = line["step"] - 1
        made = [each for each in decisions if each[0] <= step]
        place = position(step, plan.max_steps, made)
        assert line["lr"] == learning_rate_at(place, plan.max_steps, config)
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    return list(decisions)


@pytest.mark.usefixtures("quick_plan")
def test_decisions_are_on_record_and_a_resumed_run_repeats_them(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, 20, 0.01)
    by_clock: dict[str, Any] = {
        "max_steps": None,
        "minutes": 3 / 60,
        "eval_interval": 0,
        "log_interval": 3,
    }
    run = pretrain(data.path, tmp_path, stop=StopAfter(45), **by_clock)
    stopped = assert_the_rate_follows_the_decisions(run)
    assert stopped
    assert stopped[-1][0] <= 45
    saved = max(run.glob("step-*"))
    # what a kill would lose: decided and logged after the checkpoint
    later = json.dumps(metrics(run)[-1] | {"step": 46, "max_steps": 47})
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(later + "\n")
    assert resume_run(run, "cpu", StopRequest()) is None
    decisions = assert_the_rate_follows_the_decisions(run)
    assert decisions[: len(stopped)] == stopped
    assert saved.name < (run / "latest").read_text(encoding="utf-8")
    last = metrics(run)[-1]
    assert last["ended"] == f"all {decisions[-1][1]:,} steps are made"
    assert last["step"] == decisions[-1][1]
    assert resume_run(run, "cpu", StopRequest()) is None  # finished: nothing is made or written
    assert metrics(run)[-1] == last


@pytest.mark.usefixtures("quick_plan")
def test_more_minutes_are_planned_anew_and_the_decisions_before_them_stay_behind(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, 10, 0.01)
    by_clock: dict[str, Any] = {"max_steps": None, "minutes": 2 / 60, "eval_interval": 0}
    run = pretrain(data.path, tmp_path, **by_clock)
    assert assert_the_rate_follows_the_decisions(run)
    step = metrics(run)[-1]["step"]
    stop = StopAfter(3)
    assert resume_run(run, "cpu", stop, Changes(minutes=1.0)) is not None
    settings = json.loads((run / "config.json").read_bytes())
    assert settings["time_limit"]["from_step"] == step
    assert settings["changes"][0]["step"] == step
    (run / (run / "latest").read_text(encoding="utf-8").strip() / "manifest.json").unlink()
    # killed before it saved anew: the new minutes count, not what was decided for the old ones
    assert resume_run(run, "cpu", StopAfter(3)) is not None
    state = json.loads((max(run.glob("step-*/state.json"))).read_bytes())
    assert all(at > step for at, _ in state["progress"]["decisions"])


def test_a_run_by_steps_is_never_planned_anew() -> None:
    plan = TrainPlan(max_steps=9, batch_size=1, eval_interval=9, save_interval=9, compile="off")
    replanner, progress = Replanner(plan, None, 0, SINGLE_PROCESS), Progress()
    for dt_s in (0.1, 5.0, 0.1, 60.0):
        progress.add_update(Update(1.0, 1.0), 0.0, 1, dt_s)
        assert replanner.plan_at(progress) == plan
    assert progress.decisions == []
