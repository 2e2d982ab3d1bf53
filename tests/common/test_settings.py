"""Settings that go together, settings that do not, and the command line made from them."""

import json
from dataclasses import asdict
from typing import Any

import click
import pytest
from click.testing import CliRunner

from common.errors import ConfigError
from common.models.config import GenerateConfig, ModelConfig
from common.settings import from_dict, given, options_for
from train.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "--n-embd is 30 and --n-head is 4"),
        ({"n_embd": 32, "n_head": 4, "n_kv_head": 3}, "--n-head is 4 and --n-kv-head is 3"),
        ({"n_embd": 12, "n_head": 4}, "heads of 3 channels"),
        ({"n_layer": 0}, "--n-layer is 0: it must be at least 1"),
        ({"dropout": 1.0}, "--dropout is 1.0: it must be below 1"),
        ({"dropout": -0.1}, "--dropout is -0.1: it must be at least 0"),
        ({"dropout": float("nan")}, "--dropout is nan"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 5, "minutes": 1.0}, "--max-steps and --minutes are both given"),
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"minutes": float("inf")}, "--minutes is inf"),
        ({"learning_rate": float("inf")}, "--learning-rate is inf"),
        ({"beta1": 1.0}, "--beta1 is 1.0"),
        ({"seed": 1 << 64}, "--seed is"),
    ],
)
def test_a_training_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"temperature": float("inf")}, "--temperature is inf"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"seed": 1 << 64}, "--seed is"),
    ],
)
def test_a_generation_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerateConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "inner_size"),
    [
        ({"mlp": "swiglu", "n_embd": 384}, 1024),  # 8/3 of it, exactly
        ({"mlp": "swiglu", "n_embd": 192}, 512),
        ({"mlp": "swiglu", "n_embd": 128, "n_head": 4}, 384),  # 341.3 rounded up to 64
        ({"mlp": "gelu", "n_embd": 384}, 1536),
        ({"mlp": "relu", "n_embd": 384, "n_inner": 100}, 100),
    ],
)
def test_channels_inside_the_mlp_worked_out_by_hand(
    settings: dict[str, Any], inner_size: int
) -> None:
    assert ModelConfig(**settings).inner_size == inner_size


def test_a_config_comes_back_from_its_dict() -> None:
    config = ModelConfig(n_layer=3, mlp="gelu", dropout=0.25)
    assert from_dict(ModelConfig, asdict(config), "state.json") == config


def test_a_setting_of_another_version_is_named() -> None:
    with pytest.raises(ConfigError, match=r"state\.json: unknown settings mixture; .* version"):
        from_dict(ModelConfig, {"n_layer": 3, "mixture": 8}, "state.json")


@click.command()
@options_for(ModelConfig, without=("vocab_size",), preset=("n_layer",))
def only_given(**options: Any) -> None:
    """Say which options were given."""
    click.echo(json.dumps(given(ModelConfig, options), sort_keys=True))


def test_only_the_options_that_were_given_count() -> None:
    result = CliRunner().invoke(only_given, ["--no-qk-norm", "--n-layer", "3", "--mlp", "relu"])
    assert result.output == '{"mlp": "relu", "n_layer": 3, "qk_norm": false}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--n-layer", "0"],
        ["--n-layer", "x"],
        ["--mlp", "tanh"],
        ["--dropout", "1"],
        ["--depth", "2"],
    ],
    ids=" ".join,
)
def test_an_option_out_of_its_range_is_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(only_given, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output
