"""What is left of a run, counted as the loop would."""

import pytest

from train.monitoring.metrics import Progress, remaining_s


@pytest.mark.parametrize(
    ("max_steps", "eval_interval", "save_interval"),
    [(12, 4, 3), (13, 5, 2), (7, 10, 10), (6, 6, 4)],
)
def test_what_remains_are_the_updates_evaluations_and_saves_that_the_loop_makes(
    max_steps: int, eval_interval: int, save_interval: int
) -> None:
    for step in range(1, max_steps + 1):
        progress = Progress(step=step, eval_s=1e3, save_s=1e6)
        rest = range(step, max_steps + 1)  # after update ``step``, whose own are not made yet
        evals = [s for s in rest if s % eval_interval == 0 or s == max_steps]
        saves = [s for s in rest if s % save_interval == 0 or s in evals]
        expected = len(rest) - 1 + 1e3 * len(evals) + 1e6 * len(saves)
        assert remaining_s(progress, 1.0, max_steps, eval_interval, save_interval) == expected
