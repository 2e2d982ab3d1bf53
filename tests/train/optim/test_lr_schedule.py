"""The learning rate against values worked out by hand."""

import math
from typing import Any

import pytest

from train.config import TrainConfig
from train.optim.lr_schedule import learning_rate_at

# Peak 1.0, floor 0.2, 4 updates of warmup of 44: then cosine over 40 updates.
WORKED_OUT_BY_HAND = [
    (0, 0.25),
    (1, 0.5),
    (3, 1.0),
    (4, 1.0),
    (14, 0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5))),  # a quarter: cos 45 degrees
    (24, 0.6),  # half way
    (34, 0.2 + 0.8 * 0.5 * (1 - math.sqrt(0.5))),
    (44, 0.2),
    (99, 0.2),
]


@pytest.mark.parametrize(("step", "expected"), WORKED_OUT_BY_HAND)
def test_rises_to_the_peak_then_falls_to_the_floor(step: int, expected: float) -> None:
    config = TrainConfig(learning_rate=1.0, min_lr=0.2, warmup_steps=4)
    assert learning_rate_at(step, 44, config) == pytest.approx(expected, abs=1e-12)


# The same warmup, peak and floor. linear: over 40 updates. wsd: the last quarter of 44 updates
# falls, from update 33 on. A decay longer than what follows the warmup is cut to that.
OTHERS_BY_HAND = [
    ({"schedule": "linear"}, [(3, 1.0), (4, 1.0), (14, 0.8), (24, 0.6), (43, 0.22), (44, 0.2)]),
    (
        {"schedule": "wsd", "decay_share": 0.25},
        [(0, 0.25), (4, 1.0), (33, 1.0), (34, 1 - 0.8 / 11), (43, 0.2 + 0.8 / 11), (44, 0.2)],
    ),
    ({"schedule": "wsd", "decay_share": 0.0}, [(4, 1.0), (43, 1.0)]),
    ({"schedule": "wsd", "decay_share": 0.99}, [(3, 1.0), (4, 1.0), (24, 0.6), (44, 0.2)]),
    ({"schedule": "constant"}, [(0, 0.25), (3, 1.0), (4, 1.0), (43, 1.0), (99, 1.0)]),
]


@pytest.mark.parametrize(("settings", "expected"), OTHERS_BY_HAND, ids=str)
def test_other_schedules_worked_out_by_hand(
    settings: dict[str, Any], expected: list[tuple[int, float]]
) -> None:
    config = TrainConfig(learning_rate=1.0, min_lr=0.2, warmup_steps=4, **settings)
    for step, rate in expected:
        assert learning_rate_at(step, 44, config) == pytest.approx(rate, abs=1e-12), step


def test_the_floor_is_a_tenth_of_the_peak_where_none_is_given() -> None:
    config = TrainConfig(learning_rate=0.5, warmup_steps=0)
    assert learning_rate_at(0, 10, config) == 0.5
    assert learning_rate_at(10, 10, config) == pytest.approx(0.05)
    assert learning_rate_at(10, 10, TrainConfig(min_lr=0.0)) == 0.0


def test_a_short_run_warms_up_for_its_first_tenth() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=100)
    assert learning_rate_at(0, 50, config) == pytest.approx(0.2)
    assert learning_rate_at(4, 50, config) == 1.0
    assert learning_rate_at(5, 50, config) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("max_steps", [1, 2, 9, 10, 11, 1000])
def test_never_zero_nor_above_the_peak_and_never_rises_again(max_steps: int, schedule: Any) -> None:
    config = TrainConfig(learning_rate=1.0, schedule=schedule)
    rates = [learning_rate_at(step, max_steps, config) for step in range(max_steps)]
    peak = rates.index(max(rates))
    assert rates[peak] == 1.0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0
