"""The plan: steps and intervals against values worked out by hand; trials leave no trace."""

import re
from dataclasses import replace
from typing import Any, Literal

import click
import pytest
import torch
from click.testing import CliRunner

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.settings import options_for
from tests.tiny import random_model
from tests.train.runs import make_trainer
from train.batches.sources import make_source
from train.config import TrainConfig, TrainPlan
from train.distributed.comm import SINGLE_PROCESS
from train.presets import PRESETS
from train.setup.auto import LARGER
from train.setup.autotune import (
    MeasuredSpeed,
    autotune,
    choose_batch_size,
    compile_pays_off,
    known_max_steps,
    make_plan,
    regularized,
    step_time,
    summary_lines,
)
from train.setup.memory import max_batch_size
from train.setup.regularization import (
    BY_EPOCHS,
    OF_ALL_NGRAMS,
    OF_LARGER,
    OF_MANY_IDS,
    Shares,
    by_epochs_of,
    regularization,
)
from train.trainer import Trainer

SPEED = MeasuredSpeed(
    step_s=0.1,
    eval_s=1.5,
    save_s=0.5,
    spent_s=3.0,
    batch_size=2,
    compiled=False,
)
WORKED_OUT_BY_HAND: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    # settings, then max_steps, eval_interval and save_interval
    ({"max_steps": 1000}, (1000, 100, 100)),
    ({"max_steps": 1005}, (1005, 101, 101)),
    ({"max_steps": 3}, (3, 1, 1)),
    ({"max_steps": 1000, "eval_interval": 30, "save_interval": 7}, (1000, 30, 7)),
    # 600 s, less 3 spent; 10 evaluations of 2 s, saves included, are within 5%; 577 s left
    ({"minutes": 10.0}, (5770, 577, 577)),
    # 60 - 3 s; 5% of 57 s are one evaluation; 55 s left
    ({"minutes": 1.0}, (550, 550, 550)),
    # 57 s; an evaluation each 20 steps adds 0.1 s to each
    ({"minutes": 1.0, "eval_interval": 20}, (285, 20, 20)),
    ({"minutes": 0.0}, (1, 1, 1)),
]


@pytest.mark.parametrize(("settings", "expected"), WORKED_OUT_BY_HAND, ids=str)
def test_length_worked_out_by_hand(
    settings: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    config = TrainConfig(**settings)
    plan = make_plan(config, config.max_steps, SPEED)
    assert (plan.max_steps, plan.eval_interval, plan.save_interval) == expected
    assert (plan.batch_size, plan.compile) == (2, "off")  # as the trials found


# Of 4,500 tokens or so to train on: a step of 4 rows of 16 is 64 tokens.
STEPS_BY_HAND: list[tuple[dict[str, Any], int]] = [
    ({"tokens": 64}, 1),
    ({"tokens": 65}, 2),
    ({"tokens": 6400}, 100),
    ({"tokens": 1}, 1),
    ({"tokens": 6400, "tokens_per_step": 79}, 100),  # what a step reads is whole rows
]


@pytest.mark.parametrize(("settings", "expected"), STEPS_BY_HAND, ids=str)
def test_tokens_and_epochs_become_steps(
    data: DataFolder, settings: dict[str, Any], expected: int
) -> None:
    config = TrainConfig(**({"tokens_per_step": 64} | settings))
    assert known_max_steps(config, 64, data.n_tokens("train")) == expected


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_epochs_read_the_data_as_often(data: DataFolder, epochs: float) -> None:
    max_steps = known_max_steps(
        TrainConfig(tokens_per_step=64, epochs=epochs), 64, data.n_tokens("train")
    )
    assert max_steps is not None
    n_read = max_steps * 64
    assert 0 <= n_read - epochs * data.n_tokens("train") < 64


@pytest.mark.parametrize(
    ("epochs", "share"), [(0.5, 0.0625), (1.0, 0.125), (2.0, 0.25), (3.0, 0.35)], ids=str
)
def test_runs_below_two_epochs_leave_out_fewer_n_grams(epochs: float, share: float) -> None:
    assert regularization(["ngram_dropout"], epochs) == {"ngram_dropout": share}


def test_where_n_grams_met_once_have_rows_they_alone_are_left_out_and_more_of_them_later() -> None:
    few, many = (
        [regularization(["ngram_dropout", "dropout"], n, shares) for n in (2, 3, 12)]
        for shares in (BY_EPOCHS, OF_ALL_NGRAMS)
    )
    assert [tuple(each.values()) for each in few] == [(0.25, 0.0), (0.35, 0.0), (0.6, 0.12)]
    assert [tuple(each.values()) for each in many] == [(0.25, 0.0), (0.325, 0.0), (0.65, 0.0)]


@pytest.mark.parametrize("shares", [BY_EPOCHS, OF_LARGER, OF_MANY_IDS, OF_ALL_NGRAMS])
@pytest.mark.parametrize("name", ["dropout", "ngram_dropout", "weight_decay"])
def test_what_is_read_more_often_is_regularized_no_less(name: str, shares: Shares) -> None:
    values = [regularization([name], n / 4, shares)[name] for n in range(400)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("settings", "epoch_steps", "decay"),
    [
        ({"matrix_lr": 6e-3}, 1_248, 0.2671),  # 1 / (0.006 * 624)
        ({"learning_rate": 1e-2, "matrix_lr": 6e-3}, 1_248, 0.2671),
        ({"learning_rate": 6e-3}, 1_248, 0.2671),
        ({"matrix_lr": 6e-3}, 200, 1.0),  # what the epochs ask for
        ({"matrix_lr": 6e-3}, 50_000, 0.1),
        ({"learning_rate": 0.0}, 1_248, 1.0),
    ],
    ids=str,
)
def test_weights_remember_half_an_epoch_at_least(
    settings: dict[str, Any], epoch_steps: int, decay: float, tiny_config: ModelConfig
) -> None:
    config, model = TrainConfig(max_steps=1, **settings), GPT(tiny_config)
    n_steps = 12 * epoch_steps
    found = regularized(config, model, ["weight_decay"], n_steps, epoch_steps)
    assert found == replace(config, weight_decay=decay)


@pytest.mark.parametrize(
    ("preset", "kind", "larger", "shares"),
    [
        ("tiny", "bpe", {}, BY_EPOCHS),
        ("tiny", "char", {}, OF_ALL_NGRAMS),
        # past bug: without tables it was taken for one whose tables alone learn by heart
        ("tiny-portable", "bpe", {}, BY_EPOCHS),
        # past bug: asked for as little as tiny, it had 9 % more bits a byte after ten epochs
        ("tiny-portable", "bpe", {"vocab_size": 8_197}, OF_MANY_IDS),
        ("tiny-portable", "bpe", {"vocab_size": 8_197} | LARGER, OF_LARGER),
        ("tiny", "bpe", {"vocab_size": 8_197}, BY_EPOCHS),
        ("tiny", "bpe", LARGER, OF_LARGER),
        ("tiny-portable", "bpe", LARGER, OF_LARGER),
    ],
)
def test_the_network_says_how_much_is_asked_of_it(
    preset: str, kind: str, larger: dict[str, Any], shares: Shares
) -> None:
    model = PRESETS[preset].model_for(kind, n_tokens=1 << 20) | larger
    assert by_epochs_of(ModelConfig(**model)) is shares


def test_dropouts_set_later_are_those_of_a_network_made_with_them(tiny_config: ModelConfig) -> None:
    shares: dict[str, Any] = {"dropout": 0.3, "ngram_dropout": 0.5}
    config = replace(tiny_config, ngrams=2, ngram_rows=20, attention="manual")
    later = random_model(config).train()
    made = GPT(replace(config, **shares)).train()
    made.load_state_dict(later.state_dict())
    later.set_dropout(**shares)
    logits = []
    for model in (made, later):
        torch.manual_seed(1)
        logits.append(model(torch.arange(8)[None] % config.vocab_size))
    assert torch.equal(*logits)
    assert later.config == made.config


def test_what_is_compiled_has_the_dropout_of_the_run(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_with = []

    def compile_(model: GPT, **_: Any) -> Any:
        def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            compiled_with.append(model.config.ngram_dropout)
            return model(x, y)  # type: ignore[no-any-return]

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr("train.setup.autotune.COMPILE_S", {"cpu": 0.0})
    model = GPT(replace(tiny_config, ngrams=2, ngram_rows=20, ngram_dropout=0.3))
    config = TrainConfig(tokens_per_step=64, epochs=1.0)
    autotune(config, model, make_source(data, config, 16), cpu, by_epochs=["ngram_dropout"])
    assert set(compiled_with) == {model.config.ngram_dropout}
    assert model.config.ngram_dropout == pytest.approx(
        0.125, abs=0.25 * 64 / data.n_tokens("train")
    )


@pytest.mark.parametrize(
    ("compiles", "compiled_s"), [("auto", 0.8), ("auto", 2.0), ("off", 0.8)], ids=str
)
def test_it_is_regularized_for_the_steps_that_it_then_makes(
    compiles: Literal["auto", "off"],
    compiled_s: float,
    data: DataFolder,
    tiny_config: ModelConfig,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step_time(trainer: Trainer, *_: object) -> float:
        return compiled_s if trainer.compiled else 1.0

    monkeypatch.setattr(torch, "compile", lambda model, **_: model.forward)
    monkeypatch.setattr("train.setup.autotune.COMPILE_S", {"cpu": 0.0})
    monkeypatch.setattr("train.setup.autotune.step_time", step_time)
    monkeypatch.setattr("train.setup.autotune._eval_time", lambda _: 0.0)
    model = GPT(replace(tiny_config, ngrams=2, ngram_rows=20))
    config = TrainConfig(tokens_per_step=64, minutes=5.0, compile=compiles)
    source = make_source(data, config, 16)
    _, plan, _ = autotune(config, model, source, cpu, by_epochs=["ngram_dropout"])
    assert plan.compile == ("on" if (compiles, compiled_s) == ("auto", 0.8) else "off")
    n_epochs = plan.max_steps * 64 / source.tokens_per_epoch
    wanted = regularization(["ngram_dropout"], n_epochs, OF_ALL_NGRAMS)
    assert model.config.ngram_dropout == pytest.approx(wanted["ngram_dropout"], rel=0.02)


def test_max_steps_are_known_and_those_of_minutes_are_not(data: DataFolder) -> None:
    assert known_max_steps(TrainConfig(max_steps=5), 64, data.n_tokens("train")) == 5
    assert known_max_steps(TrainConfig(minutes=1.0), 64, data.n_tokens("train")) is None


def test_auto_finds_the_rows_that_fit(tiny_config: ModelConfig, cpu: Device) -> None:
    @click.command()
    @options_for(TrainConfig)
    def command(**options: Any) -> None:
        click.echo(options["batch_size"])

    runner = CliRunner()
    assert runner.invoke(command, ["--batch-size", "auto"]).output == "0\n"
    assert runner.invoke(command, ["--batch-size", "7"]).output == "7\n"
    for wrong in ("-1", "many", ""):
        assert runner.invoke(command, ["--batch-size", wrong]).exit_code == 2
    config = TrainConfig(tokens_per_step=16 * 64, batch_size=0)
    assert choose_batch_size(config, tiny_config, cpu) == max_batch_size(tiny_config, cpu) > 1
    assert choose_batch_size(replace(config, batch_size=7), tiny_config, cpu) == 7


class Clocked:
    """Stands in for updates: each update takes as long as is said, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first_s: float, then_s: float) -> None:
        self.group = SINGLE_PROCESS
        self.now, self.n_steps = 100.0, 0
        self.times = (first_s, first_s, then_s)
        monkeypatch.setattr("train.setup.autotune.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("train.setup.autotune.update", self.update)

    def update(self, trainer: Any, step: int, lr: float) -> None:
        assert lr == 0.0
        self.now += self.times[min(self.n_steps, 2)]
        self.n_steps += 1

    def note_time(self, dt_s: float) -> None:
        pass


# Settings; the first two updates and the others in seconds; updates made; the time found.
TRIALS_BY_HAND: list[tuple[dict[str, Any], float, float, int, float]] = [
    # two warm up; 2 % of 10 s are 0.2 s: two of 0.06 s, which are the least, and a third
    ({"minutes": 1 / 6}, 0.5, 0.06, 2 + 3, 0.06),
    ({"minutes": 1 / 6}, 0.5, 1.0, 2 + 2, 1.0),
    # never more than 5 s
    ({"minutes": 600.0}, 0.5, 0.4, 2 + 12, 0.4),
    # no time is to be kept to: 0.2 % of 10,000 updates of 0.125 s are 2.5 s
    ({"max_steps": 10_000}, 9.0, 0.125, 2 + 20, 0.125),
    # of less than 1,000 updates one is more than that
    ({"max_steps": 3}, 0.2, 0.1, 2 + 1, 0.1),
    ({"max_steps": 400}, 0.2, 0.1, 2 + 1, 0.1),
]


@pytest.mark.parametrize(("settings", "first_s", "then_s", "n_steps", "found"), TRIALS_BY_HAND)
def test_trials_are_a_small_share_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    first_s: float,
    then_s: float,
    n_steps: int,
    found: float,
) -> None:
    clocked: Any = Clocked(monkeypatch, first_s, then_s)
    assert step_time(clocked, TrainConfig(**settings), settings.get("max_steps")) == pytest.approx(
        found
    )
    assert clocked.n_steps == n_steps


def test_only_long_runs_are_compiled_by_themselves(cpu: Device) -> None:
    gpu = Device(torch.device("cuda"), torch.bfloat16, "a test")
    apple = Device(torch.device("mps"), torch.float32, "a test")
    for settings, expected in (
        ({"minutes": 6.0}, [False, True, False]),
        ({"minutes": 4.0}, [False, False, False]),
        ({"minutes": 60.0}, [True, True, False]),
        ({"max_steps": 20_000}, [True, True, False]),  # of 0.1 s: 2,000 s
        ({"max_steps": 20_000, "compile": "off"}, [False] * 3),
        ({"max_steps": 20_000, "compile": "on"}, [False] * 3),  # it is already
    ):
        config = TrainConfig(**settings)
        assert [
            compile_pays_off(config, config.max_steps, each, 0.1) for each in (cpu, gpu, apple)
        ] == expected


def test_trial_steps_leave_no_trace(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = random_model(replace(tiny_config, dropout=0.2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig(tokens_per_step=64, batch_size=2, max_steps=1)
    _, plan, speed = autotune(config, model, make_source(data, config, 16), cpu)
    assert min(speed.step_s, speed.eval_s) > 0
    assert speed.spent_s > speed.step_s
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert (plan.max_steps, plan.batch_size, plan.compile) == (1, 2, "off")


def test_the_plan_says_what_is_to_come(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = GPT(tiny_config)
    config = TrainConfig(tokens_per_step=64)
    plan = TrainPlan(
        max_steps=2000, batch_size=2, eval_interval=500, save_interval=500, compile="off"
    )
    trainer = make_trainer(model, data, config, cpu, batch_size=2)
    summary = "\n".join(summary_lines(trainer, plan, SPEED, data))
    n_train, n_val = data.n_tokens("train"), data.n_tokens("val")
    for words in (
        f"{model.n_parameters:,} parameters: 1 layers, 2 heads, 16 channels, context 16",
        f"{n_train:,} tokens to train on, {n_val:,} to validate on",
        "64 tokens: 2 x 2 rows of 16",
        f"2,000 steps, 128,000 tokens, {128_000 / n_train:.2f} epochs; evaluation each 500 steps",
        "expected    3m 28s (100 ms a step): until about ",  # 200 s of steps, 4 x 2 s
    ):
        assert words in summary
    assert re.search(r"^memory      \d+\.\d GB$", summary, re.MULTILINE)
