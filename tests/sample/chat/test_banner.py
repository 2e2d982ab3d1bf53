"""What is said of a model before one talks to it: what it read, how well it did, what to expect."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_checkpoint
from common.files import write_json
from sample.chat.banner import Facts, banner, read_facts, warning
from tests.sample.conftest import make_run
from tests.tiny import prepare_text, words

WELL_READ = Facts(
    folder=Path("runs/quern/step-00000500"),
    step=500,
    n_tokens=1_234_567,
    n_parameters=50_000,
    vocab_size=2053,
    epochs=1.494,
    val_loss=3.2345,
    val_bpb=1.6714,
)


def test_the_banner_says_what_one_talks_to() -> None:
    assert banner(WELL_READ).splitlines() == [
        "runs/quern/step-00000500: step 500, 1,234,567 tokens read (1.49 epochs), "
        "val loss 3.2345 (1.671 bits/byte).",
        "This is a base model: it does not answer, it continues the text that you begin.",
        "/help lists the commands, Ctrl-D leaves.",
    ]
    unknown = replace(WELL_READ, epochs=None, val_loss=None, val_bpb=None)
    assert "1,234,567 tokens read, val loss not measured." in banner(unknown)


def test_a_model_that_read_less_than_20_tokens_a_parameter_is_undertrained() -> None:
    assert warning(replace(WELL_READ, n_tokens=1_000_000)) is None
    said = warning(replace(WELL_READ, n_tokens=999_999))
    assert said is not None
    assert said.startswith("It is undertrained: it read 20.0 tokens for each of its 50,000 param")
    assert said in banner(replace(WELL_READ, n_tokens=999_999))


@pytest.mark.parametrize("vocab_size", [65, 2053, 50257])
def test_a_loss_near_that_of_guessing_is_gibberish(vocab_size: int) -> None:
    blind = math.log(vocab_size)
    for val_loss, hardly in ((blind, True), (0.81 * blind, True), (0.79 * blind, False)):
        said = warning(replace(WELL_READ, vocab_size=vocab_size, val_loss=val_loss))
        assert (said is not None and "hardly begun to learn" in said) == hardly


def test_facts_are_read_from_the_run_and_epochs_from_data_that_are_still_there(
    tmp_path: Path,
) -> None:
    data = prepare_text(words(400), tmp_path)
    run = make_run(tmp_path / "runs", "circle")
    line = {"step": 10, "val_loss": 1.25, "val_bpb": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    folder = run / "step-00000010"
    loaded = load_checkpoint(folder, torch.device("cpu"))
    assert read_facts(folder, loaded).epochs is None  # config.json does not say which data

    described = {"path": str(data.path), "sha256": data.sha256}
    write_json(run / "config.json", {"format": 1, "data": described})
    facts = read_facts(folder, loaded)
    assert facts.epochs == 10_000 / data.n_tokens("train")
    assert (facts.step, facts.n_tokens, facts.val_loss, facts.val_bpb) == (10, 10_000, 1.25, 0.5)

    write_json(run / "config.json", {"format": 1, "data": described | {"sha256": "other"}})
    assert read_facts(folder, loaded).epochs is None
    write_json(run / "config.json", {"format": 1, "data": {"path": "/none", "sha256": ""}})
    assert read_facts(folder, loaded).epochs is None
