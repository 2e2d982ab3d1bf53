"""When a run ends, and when it is warned of overfitting, worked out by hand."""

import pytest

from train.config import TrainConfig
from train.monitoring.early_stopping import (
    Losses,
    evals_since_best,
    overfitting_line,
    reason_to_end,
)


def history(*val: float) -> list[Losses]:
    return [Losses(1.0, loss) for loss in val]


@pytest.mark.parametrize(
    ("val", "expected"),
    [((3.0,), 0), ((3.0, 2.0), 0), ((2.0, 3.0), 1), ((3.0, 2.0, 2.0, 2.5), 2)],
    ids=str,
)
def test_evaluations_are_counted_from_the_first_lowest(
    val: tuple[float, ...], expected: int
) -> None:
    assert evals_since_best(history(*val)) == expected


def test_patience_ends_a_run_at_the_evaluation_that_exhausts_it() -> None:
    config = TrainConfig(max_steps=100, patience=2)
    losses = history(3.0, 2.0, 2.1, 2.05)
    reasons = [reason_to_end(10 * n, 100, losses[:n], config) for n in range(1, 5)]
    assert reasons == [None, None, None, "no better val loss in 2 evaluations (--patience)"]


def test_without_patience_only_the_last_step_ends_a_run() -> None:
    config = TrainConfig(max_steps=100)
    assert reason_to_end(90, 100, history(1.0, 2.0, 3.0, 4.0), config) is None
    assert reason_to_end(100, 100, history(1.0), config) == "all 100 steps are made"


@pytest.mark.parametrize(("val_loss", "ends"), [(2.01, False), (2.0, True), (1.5, True)])
def test_the_target_ends_a_run_where_val_is_at_most_that(val_loss: float, ends: bool) -> None:
    reason = reason_to_end(10, 100, history(val_loss), TrainConfig(max_steps=100, target_loss=2.0))
    expected = f"val loss {val_loss:.4f} has reached --target-loss 2"
    assert reason == (expected if ends else None)


RISING = [Losses(3.0, 3.0), Losses(2.5, 3.1), Losses(2.0, 3.2), Losses(1.5, 3.3), Losses(1.0, 3.4)]


@pytest.mark.parametrize(
    ("losses", "is_said"),
    [
        ([], False),
        (RISING[:1], False),
        (RISING[:4], True),
        ([*RISING[:3], Losses(1.5, 3.1)], False),  # val fell
        # train rose as well: it is lost, it does not learn
        ([*RISING[:3], Losses(2.1, 3.5)], False),
        ([Losses(3.0, 4.0), *RISING[1:4]], False),  # two in a row
        ([Losses(3.0, 4.0), *RISING], False),  # four in a row: said before
        ([Losses(3.0, 4.0), *RISING[:4]], True),
    ],
)
def test_rises_are_those_in_a_row_at_the_end(losses: list[Losses], is_said: bool) -> None:
    assert (overfitting_line(losses) is not None) == is_said


def test_overfitting_is_said_once_in_words_at_the_third_rise() -> None:
    lines = [overfitting_line(RISING[:n]) for n in range(1, 6)]
    assert [line is not None for line in lines] == [False, False, False, True, False]
    assert (
        "val loss rose from 3.0000 to 3.3000 while train loss fell from 3.0000 to 1.5000"
    ) in str(lines[3])
