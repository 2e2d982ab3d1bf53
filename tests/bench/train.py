"""Training against a plain loop around transformers.GPT2LMHeadModel: the same network and batches.

The plain loop is what PyTorch's defaults give. The second one also has its matrices multiplied as
ours are (common/device.py), which tells how much the rest makes. Floor: six operations a
parameter and token, over the rate of a large matrix product, measured in the same run.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from common.device import choose_device, set_matmul_precision
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from tests.bench.table import compare
from train.config import TrainConfig
from train.optim.optimizers import make_optimizer
from train.presets import PRESETS

SMALL = ModelConfig(
    **ARCHITECTURES["gpt2"], n_layer=4, n_head=4, n_embd=256, vocab_size=4_096, block_size=128
)
GPT2 = ModelConfig(**PRESETS["gpt2"].model, vocab_size=50_257)
RATE = 1e-3


def main() -> None:
    """Print a table for a small network and one for GPT-2 itself."""
    logging.set_verbosity_error()  # their config is told of smaller vocabularies
    _table(SMALL, n_rows=8, n_steps=5, repeats=5)
    _table(GPT2, n_rows=1, n_steps=1, repeats=3)


def _table(config: ModelConfig, n_rows: int, n_steps: int, repeats: int) -> None:
    n_parameters = GPT(config).n_parameters
    tokens = partial(_tokens_per_second, config, n_rows, n_steps)
    compare(
        f"Training, gpt2 architecture, {n_parameters:,} parameters, {n_rows} rows of "
        f"{config.block_size}, float32",
        "tokens/s",
        {
            "ours": partial(tokens, _ours, multiply_fast=True),
            "floor: matrix products alone": partial(_ceiling, n_parameters),
            "GPT2LMHeadModel, multiplied as ours": partial(tokens, _theirs, multiply_fast=True),
            "a loop around GPT2LMHeadModel": partial(tokens, _theirs, multiply_fast=False),
        },
        repeats,
    )


def _tokens_per_second(
    config: ModelConfig,
    n_rows: int,
    n_steps: int,
    contender: Callable[[ModelConfig], tuple[nn.Module, Any, Callable[[Tensor], Tensor]]],
    *,
    multiply_fast: bool,
) -> float:
    """Train a fresh network, which is forgotten afterwards: two of 124 million take 5 GB."""
    _choose_products(fast=multiply_fast)
    torch.manual_seed(0)
    model, optimizer, loss_of = contender(config)
    idx = torch.randint(config.vocab_size, (n_rows, config.block_size + 1))

    def step() -> None:
        model.zero_grad()
        loss_of(idx).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()  # warms up
    start = time.perf_counter()
    for _ in range(n_steps):
        step()
    return n_steps * n_rows * config.block_size / (time.perf_counter() - start)


def _ours(config: ModelConfig) -> tuple[nn.Module, Any, Callable[[Tensor], Tensor]]:
    model = GPT(config).train()
    optimizer = make_optimizer(model, TrainConfig(max_steps=1, learning_rate=RATE))
    return model, optimizer, lambda idx: model(idx[:, :-1], idx[:, 1:])


def _theirs(config: ModelConfig) -> tuple[nn.Module, Any, Callable[[Tensor], Tensor]]:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    # it moves labels on by itself, so it is given the same ids for both
    return model, optimizer, lambda idx: model(idx[:, :-1], labels=idx[:, :-1]).loss


def _ceiling(n_parameters: int) -> float:
    """Return the tokens a second of nothing but matrix products as fast as a large one is."""
    _choose_products(fast=True)
    a = torch.randn(1024, 1024)
    a @ a
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    return 20 * 2 * 1024**3 / (time.perf_counter() - start) / (6 * n_parameters)


def _choose_products(*, fast: bool) -> None:
    if fast:
        set_matmul_precision(choose_device("cpu").torch_device)
    else:
        torch.set_float32_matmul_precision("highest")  # PyTorch's default
