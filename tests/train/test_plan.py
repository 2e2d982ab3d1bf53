"""The plan: steps and intervals against values worked out by hand; trials leave no trace."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config import ModelConfig
from common.device import Device
from common.model import GPT
from common.tokenfile import DataFolder
from tests.tiny import random_model
from train.config import TrainConfig
from train.plan import Speed, fix_batch, fix_length, measure, plan_lines

SPEED = Speed(step_s=0.1, eval_s=2.0, spent_s=3.0, memory_bytes=1_500_000_000)
WORKED_OUT_BY_HAND: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    # settings, then max_steps, eval_interval and save_interval
    ({"max_steps": 1000}, (1000, 100, 100)),
    ({"max_steps": 1005}, (1005, 101, 101)),
    ({"max_steps": 3}, (3, 1, 1)),
    ({"max_steps": 1000, "eval_interval": 30, "save_interval": 7}, (1000, 30, 7)),
    # 600 s, less 3 spent; 10 evaluations of 2 s are within 15%; 577 s left
    ({"minutes": 10.0}, (5770, 577, 577)),
    # 60 - 3 s; 15% of 57 s are 4 evaluations; 49 s left
    ({"minutes": 1.0}, (490, 123, 123)),
    # 57 s; an evaluation each 20 steps adds 0.1 s to each
    ({"minutes": 1.0, "eval_interval": 20}, (285, 20, 20)),
    ({"minutes": 0.0}, (1, 1, 1)),
]


@pytest.mark.parametrize(("settings", "expected"), WORKED_OUT_BY_HAND, ids=str)
def test_length_worked_out_by_hand(
    settings: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    config = fix_length(TrainConfig(**settings), SPEED)
    assert (config.max_steps, config.eval_interval, config.save_interval) == expected
    assert config.minutes is None


@pytest.mark.parametrize(
    ("tokens_per_step", "batch_size", "expected"),
    [(16 * 12, 5, 4), (16 * 12 + 15, 12, 12), (16 * 7, 6, 1), (3, 9, 1)],
)
def test_rows_at_a_time_divide_those_of_a_step(
    tiny_config: ModelConfig, cpu: Device, tokens_per_step: int, batch_size: int, expected: int
) -> None:
    config = TrainConfig(tokens_per_step=tokens_per_step, batch_size=batch_size)
    assert fix_batch(config, GPT(tiny_config), cpu).batch_size == expected


def test_rows_that_fit_are_found_where_none_are_given(
    tiny_config: ModelConfig, cpu: Device
) -> None:
    config = TrainConfig(tokens_per_step=16 * 64)
    batch_size = fix_batch(config, GPT(tiny_config), cpu).batch_size
    assert 64 % batch_size == 0
    assert batch_size > 1


@pytest.mark.usefixtures("quick_plan")
def test_trial_steps_leave_no_trace(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = random_model(replace(tiny_config, dropout=0.2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed = measure(TrainConfig(tokens_per_step=64, batch_size=2), model, data, cpu)
    assert min(speed.step_s, speed.eval_s, speed.memory_bytes) > 0
    assert speed.spent_s > speed.step_s
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_the_plan_says_what_is_to_come(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = GPT(tiny_config)
    config = TrainConfig(
        max_steps=2000, tokens_per_step=64, batch_size=2, eval_interval=500, save_interval=500
    )
    plan = "\n".join(plan_lines(config, model, data, cpu, SPEED))
    n_train, n_val = data.n_tokens("train"), data.n_tokens("val")
    for words in (
        f"{model.n_parameters:,} parameters: 1 layers, 2 heads, 16 channels, context 16",
        f"{n_train:,} tokens to train on, {n_val:,} to validate on",
        "64 tokens: 2 x 2 rows of 16",
        f"2,000 steps, 128,000 tokens, {128_000 / n_train:.2f} epochs; evaluation each 500 steps",
        "memory      1.5 GB",
        "expected    3m 28s (100 ms a step): until about ",  # 200 s of steps, 4 x 2 s
    ):
        assert words in plan
