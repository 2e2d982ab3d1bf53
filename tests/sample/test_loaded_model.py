"""What is said of a model before one talks to it: what it read, how well it did, what to expect."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.files import write_json
from common.models.config import GenerateConfig, ModelConfig
from sample.loaded_model import (
    RunInfo,
    banner,
    generate_config,
    load_model,
    model_card,
    undertrained_warning,
)
from sample.text.prompt import CHAT, RAW, TURNS
from tests.sample.chats import make_chat_run
from tests.sample.conftest import make_run

WELL_READ = RunInfo(
    folder=Path("runs/quern/step-00000500"),
    step=500,
    n_tokens=1_234_567,
    n_parameters=50_000,
    config=ModelConfig(vocab_size=2053),
    val_loss=3.2345,
    val_bpb=1.6714,
)


def test_the_banner_says_what_one_talks_to() -> None:
    assert banner(WELL_READ, RAW).splitlines() == [
        "runs/quern/step-00000500: step 500, 1,234,567 tokens read, "
        "val loss 3.2345 (1.671 bits/byte).",
        "This is a base model: it does not answer, it continues the text that you begin.",
    ]
    unknown = replace(WELL_READ, val_loss=None, val_bpb=None)
    assert "1,234,567 tokens read, val loss not measured." in banner(unknown, RAW)


def test_a_model_that_read_less_than_20_tokens_a_parameter_is_undertrained() -> None:
    assert undertrained_warning(replace(WELL_READ, n_tokens=1_000_000)) is None
    said = undertrained_warning(replace(WELL_READ, n_tokens=999_999))
    assert said is not None
    assert said.startswith("It is undertrained: it read 20.0 tokens for each of its 50,000 param")
    assert said in banner(replace(WELL_READ, n_tokens=999_999), RAW)


@pytest.mark.parametrize("vocab_size", [65, 2053, 50257])
def test_a_loss_near_that_of_guessing_is_gibberish(vocab_size: int) -> None:
    blind, config = math.log(vocab_size), ModelConfig(vocab_size=vocab_size)
    for val_loss, hardly in ((blind, True), (0.81 * blind, True), (0.79 * blind, False)):
        said = undertrained_warning(replace(WELL_READ, config=config, val_loss=val_loss))
        assert (said is not None and "hardly begun to learn" in said) == hardly


def test_what_is_known_is_read_from_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "circle")
    line = {"step": 10, "val_loss": 1.25, "val_bpb": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    info = info_of(run)
    assert (info.step, info.n_tokens, info.val_loss, info.val_bpb) == (10, 10_000, 1.25, 0.5)


def info_of(run: Path) -> RunInfo:
    return load_model(run.name, run.parent, "best", "cpu", "none").info


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    info = info_of(make_run(tmp_path, "circle"))
    card = model_card(info, GenerateConfig(top_k=7), TURNS)
    assert (card["name"], card["step"], card["tokens_read"]) == ("circle", 10, 10_000)
    assert (card["n_layer"], card["block_size"], card["vocab_size"]) == (1, 16, 15)
    assert card["defaults"] == {"temperature": 0.8, "top_p": 0.95, "top_k": 7, "max_tokens": 200}
    assert (card["val_loss"], card["template"]) == (1.25, "turns")


def test_what_a_run_began_from_is_counted_as_read_or_nothing_is_said(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    tuned = make_chat_run(tmp_path, "tuned")
    for run, base in ((second, first / "step-00000010"), (tuned, second / "step-00000030")):
        write_json(run / "config.json", {"format": 1, "init_from": str(base)})
    info = info_of(tuned)
    assert (info.is_chat, info.n_tokens, info.n_base_tokens) == (True, 900, 30_000 + 10_000)
    assert "900 tokens read after the 40,000 of its base model, val loss" in banner(info, CHAT)
    assert "It was trained on conversations, and answers." in banner(info, CHAT)
    assert "It was trained to answer, but with --template raw it does not" in banner(info, RAW)
    # of 41,344 parameters
    enough, less = (replace(info, n_tokens=20 * 41_344 - 40_000 - n) for n in (0, 1))
    assert undertrained_warning(enough) is None
    assert "it read 20.0 tokens" in str(undertrained_warning(less))
    card = model_card(info, GenerateConfig(), CHAT)
    assert (card["tokens_read"], card["chat"], card["template"]) == (40_900, True, "chat")
    shutil.rmtree(first / "step-00000010")
    info = info_of(tuned)
    assert (info.n_base_tokens, undertrained_warning(info)) == (None, None)
    assert "900 tokens read, val loss" in banner(info, CHAT)


def test_settings_are_those_given_then_those_of_a_chat_then_the_declared_ones() -> None:
    given = {"temperature": 0.5}
    assert generate_config(WELL_READ, RAW, given) == GenerateConfig(temperature=0.5)
    found = generate_config(WELL_READ, CHAT, given)  # of a context of 256
    assert (found.temperature, found.frequency_penalty, found.max_new_tokens) == (0.5, 0.1, 256)
    assert generate_config(WELL_READ, CHAT, given, most_tokens=99).max_new_tokens == 99
    own: dict[str, Any] = {"frequency_penalty": 0.0, "max_new_tokens": 5}
    assert generate_config(WELL_READ, CHAT, own) == GenerateConfig(**own)


def test_a_diverged_run_has_a_card_without_what_is_no_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, "circle")
    (run / "metrics.jsonl").write_text('{"step": 10, "val_loss": NaN}\n', "utf-8")
    card = model_card(info_of(run), GenerateConfig(), RAW)
    assert card["val_loss"] is None
    json.dumps(card, allow_nan=False)
