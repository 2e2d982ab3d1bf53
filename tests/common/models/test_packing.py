"""Conversations in one row against each of them alone: the law that packing must obey."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.models.loss import IGNORED
from tests.tiny import random_model

SIZES: dict[str, Any] = {
    "vocab_size": 61, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 32,
}  # fmt: skip
# A row ends in padding, one is full, one holds a single conversation.
ROWS = [[5, 4], [3, 6, 3], [12]]
SWITCHES: list[dict[str, Any]] = [
    {},
    {"positions": "learned"},
    {"positions": "sinusoidal"},
    {"ngrams": 4, "ngram_rows": 40, "ngram_dim": 7},
    {"n_kv_head": 2},
    {"norm_first": False, "pad_vocab": 16, "head_bias": True},
    ARCHITECTURES["gpt2"],
]
switches = pytest.mark.parametrize("changed", SWITCHES, ids=str)
attentions = pytest.mark.parametrize("attention", ["manual", "sdpa"])


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, targets, of which a third is not learned, and starts, each (B, T)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(61, (len(ROWS), 12), generator=generator)
    y = torch.randint(61, (len(ROWS), 12), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.3] = IGNORED
    starts = torch.zeros_like(x)
    for row, lengths in enumerate(ROWS):
        at = 0
        for length in lengths:
            starts[row, at : at + length] = at
            at += length
        starts[row, at:], y[row, at:] = at, IGNORED
    return x, y, starts


def alone(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return ids and targets of each conversation, (1, T)."""
    parts = []
    for row, lengths in enumerate(ROWS):
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        parts += [
            (x[row, first:last][None], y[row, first:last][None]) for first, last in pairwise(ends)
        ]
    return parts


def gradients(model: GPT) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@attentions
@switches
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_each_conversation_alone(
    changed: dict[str, Any], attention: str, checkpointing: bool
) -> None:
    model = random_model(ModelConfig(**SIZES | changed | {"attention": attention})).double()
    model.activation_checkpointing = checkpointing
    x, y, starts = packed()
    loss = model(x, y, starts)
    loss.backward()
    ours = gradients(model)
    n_learned = int((y != IGNORED).sum())
    total = torch.zeros((), dtype=torch.float64)
    for ids, targets in alone(x, y):
        logits = model(ids)
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (total / n_learned).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, total / n_learned, rtol=1e-12, atol=0)
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-13)
        assert gradient.abs().max() > 1e-6, name


@attentions
@switches
def test_nothing_reaches_another_conversation_or_what_came_before(
    changed: dict[str, Any], attention: str
) -> None:
    model = random_model(ModelConfig(**SIZES | changed | {"attention": attention}))
    x, _, starts = packed()
    with torch.inference_mode():
        before = model(x, starts=starts)
        for row, lengths in enumerate(ROWS):
            for position in range(sum(lengths)):
                other = x.clone()
                other[row, position] = (x[row, position] + 7) % 61
                changes = (model(other, starts=starts) - before).abs().amax(dim=-1) > 1e-6
                start = int(starts[row, position])
                own = torch.zeros_like(changes)
                own[row] = (starts[row] == start) & (torch.arange(12) >= position)
                assert not (changes & ~own).any()
                assert changes[row, position]
                assert bool(changes[row, -1]) == bool(own[row, -1])  # it reaches to the end


@switches
def test_a_row_of_one_conversation_is_a_row_without_starts(changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**SIZES | changed | {"attention": "manual"}))
    x, y, _ = packed()
    assert torch.equal(model(x, y, torch.zeros_like(x)), model(x, y))
