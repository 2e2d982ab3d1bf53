"""What is left of a run, counted as the loop would."""

import pytest

from train.monitoring.metrics import LAST_UPDATES, StepTimer, saves_left, times_left


@pytest.mark.parametrize(
    ("max_steps", "eval_interval", "save_interval"),
    [(12, 4, 3), (13, 5, 2), (7, 10, 10), (6, 6, 4)],
)
def test_evaluations_and_saves_left_are_those_that_the_loop_makes(
    max_steps: int, eval_interval: int, save_interval: int
) -> None:
    for done in range(max_steps + 1):
        coming = range(done + 1, max_steps + 1)
        evals = [s for s in coming if s % eval_interval == 0 or s == max_steps]
        saves = [s for s in coming if s % save_interval == 0 or s in evals]
        assert times_left(done, max_steps, eval_interval) == len(evals)
        assert saves_left(done, max_steps, save_interval, eval_interval) == len(saves)


def test_the_first_update_counts_only_until_there_is_another() -> None:
    step_timer = StepTimer()
    assert step_timer.step_s == 0
    step_timer.add(40.0)  # compiling
    assert step_timer.step_s == 40.0
    step_timer.add(1.0)
    step_timer.add(3.0)
    assert step_timer.step_s == 2.0
    for _ in range(LAST_UPDATES):
        step_timer.add(5.0)
    assert step_timer.step_s == 5.0
