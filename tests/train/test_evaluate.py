"""Loss and bits per byte against values worked out by hand; every token scored once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.tokenizer import CharTokenizer
from tests.tiny import prepare_text, random_model, words
from tests.train.runs import evaluate_text
from train.data import cut_windows
from train.evaluate import eval_batches, sample_line, token_lengths

ALL = 1_000_000


def uniform_model(config: ModelConfig) -> GPT:
    """Return a network that thinks every id equally likely."""
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def test_a_uniform_model_scores_ln_v(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    ids = data.tokens("val")
    score = evaluate_text(
        uniform_model(tiny_config), ids, token_lengths(data.tokenizer()), cpu, max_tokens=ALL
    )
    assert score.loss == pytest.approx(math.log(tiny_config.vocab_size), rel=1e-6)
    assert score.n_tokens == len(ids) - 1


def test_bits_per_byte_worked_out_by_hand(cpu: Device) -> None:
    tokenizer = CharTokenizer(("a", "b", "\u00fc"))  # of 1, 1 and 2 bytes; 8 ids with the specials
    assert token_lengths(tokenizer).tolist() == [1, 1, 2, 0, 0, 0, 0, 0]
    config = ModelConfig(vocab_size=8, block_size=4, n_layer=1, n_head=1, n_embd=4)
    ids = np.array([0, 2, 1, 2, 2, tokenizer.eot_id], np.uint16)
    score = evaluate_text(uniform_model(config), ids, token_lengths(tokenizer), cpu, max_tokens=ALL)
    # five predictions of log2(8) = 3 bits, of 2 + 1 + 2 + 2 + 0 bytes
    assert score.bpb == pytest.approx(5 * 3 / 7, rel=1e-6)


def test_bits_per_byte_compare_between_vocabularies(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, tmp_path: Path
) -> None:
    text = words(1000)
    pairs = prepare_text(text, tmp_path, tokenizer="bpe")
    config = replace(tiny_config, vocab_size=pairs.tokenizer().vocab_size)
    ids = pairs.tokens("val")
    score = evaluate_text(uniform_model(config), ids, token_lengths(pairs.tokenizer()), cpu, ALL)
    first = len(pairs.tokenizer().token_bytes[ids[0]])
    n_bytes = pairs.meta["splits"]["val"]["bytes"] - first  # nothing predicts the first token
    expected = (len(ids) - 1) * math.log2(config.vocab_size) / n_bytes
    assert score.bpb == pytest.approx(expected, rel=1e-6)
    assert pairs.meta["splits"]["val"]["bytes"] == data.meta["splits"]["val"]["bytes"]


def rows(ids: Any, max_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (x, y) of single windows of at most 8 tokens."""
    batches = eval_batches(ids, 8, max_tokens, n_rows=1)
    windows = [cut_windows(ids, *batch) for batch in batches]
    return [(each[:, :-1], each[:, 1:]) for each in windows]


@pytest.mark.parametrize("n_ids", [2, 8, 9, 10, 16, 17, 18, 50])
def test_all_of_val_is_scored_once_the_shorter_last_window_too(n_ids: int) -> None:
    ids = np.arange(n_ids, dtype=np.uint16)
    targets = [int(t) for _, y in rows(ids, ALL) for t in y[0]]
    inputs = [int(t) for x, _ in rows(ids, ALL) for t in x[0]]
    assert targets == list(range(1, n_ids))
    assert inputs == list(range(n_ids - 1))
    assert max(x.shape[1] for x, _ in rows(ids, ALL)) <= 8


@pytest.mark.parametrize(
    ("max_tokens", "n_windows"), [(998, 124), (100, 12), (16, 2), (8, 1), (1, 1)]
)
def test_a_larger_split_is_scored_on_windows_spread_evenly_over_it(
    max_tokens: int, n_windows: int
) -> None:
    ids = np.arange(1000, dtype=np.uint16)
    targets = [y[0].tolist() for _, y in rows(ids, max_tokens)]
    assert [len(row) for row in targets] == [8] * n_windows
    flat = [t for row in targets for t in row]
    assert flat == sorted(set(flat))  # none twice
    if n_windows > 1:
        assert (flat[0], flat[-1]) == (1, 999)
        gaps = np.diff([row[0] for row in targets])
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # that it trains in
def test_the_loss_is_the_mean_over_tokens_not_over_windows_and_on_a_cpu_in_float32(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device, dtype: torch.dtype
) -> None:
    model = random_model(tiny_config)
    ids = data.tokens("val")[:36]  # windows of 16, 16 and 3 predictions
    nats = 0.0
    with torch.inference_mode():
        for start in (0, 16, 32):
            row = torch.from_numpy(ids[start : start + 17].astype("int64"))
            logits = model(row[None, :-1])
            nats += float(F.cross_entropy(logits[0], row[1:], reduction="sum"))
    device, lengths = replace(cpu, dtype=dtype), token_lengths(data.tokenizer())
    score = evaluate_text(model, ids, lengths, device, max_tokens=ALL)
    assert score.loss == pytest.approx(nats / 35, rel=1e-5)


def test_two_evaluations_are_equal_and_dropout_is_off_in_them(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = random_model(replace(tiny_config, dropout=0.5)).train()
    arguments: tuple[Any, ...] = (data.tokens("val"), token_lengths(data.tokenizer()), cpu, ALL)
    first = evaluate_text(model, *arguments)
    torch.manual_seed(99)
    assert evaluate_text(model, *arguments) == first
    assert model.training


def test_evaluation_leaves_the_random_numbers_alone(
    data: DataFolder, tiny_config: ModelConfig, cpu: Device
) -> None:
    model = random_model(replace(tiny_config, dropout=0.5))
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    evaluate_text(model, data.tokens("val"), token_lengths(data.tokenizer()), cpu, ALL)
    sample_line(model, data.tokenizer(), [0, 1], seed=3)
    assert torch.equal(torch.rand(4), expected)


def test_the_sample_shows_the_prompt_and_the_same_continuation_each_time(
    data: DataFolder, tiny_config: ModelConfig
) -> None:
    model, tokenizer = random_model(tiny_config), data.tokenizer()
    line = sample_line(model, tokenizer, tokenizer.encode("the quern"), seed=3)
    assert "it was given:  'the quern'\n" in line
    assert line == sample_line(model, tokenizer, tokenizer.encode("the quern"), seed=3)
    assert line != sample_line(model, tokenizer, tokenizer.encode("the quern"), seed=4)
