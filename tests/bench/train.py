"""Training against a plain loop around transformers.GPT2LMHeadModel: the same network and batches.

Floor: six operations a parameter and token, over the rate of a large matrix product, measured in
the same run.
"""

import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.config import ARCHITECTURES, ModelConfig
from common.model import GPT
from tests.bench.table import compare
from train.config import TrainConfig
from train.optimizer import make_optimizer

B, T, V, N_STEPS = 8, 128, 4_096, 5
SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 256}


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    config = ModelConfig(**ARCHITECTURES["gpt2"], **SIZES, vocab_size=V, block_size=T)
    ours = GPT(config)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            **SIZES, vocab_size=V, n_positions=T, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    )
    n_theirs = sum(p.numel() for p in theirs.parameters())
    assert ours.n_parameters == n_theirs, (ours.n_parameters, n_theirs)
    idx = torch.randint(V, (B, T + 1))
    x, y = idx[:, :-1].contiguous(), idx[:, 1:].contiguous()
    optimizer = make_optimizer(ours, TrainConfig(max_steps=1))
    peer_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3)

    def our_steps() -> float:
        start = time.perf_counter()
        for _ in range(N_STEPS):
            optimizer.zero_grad(set_to_none=True)
            _, loss = ours(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
            optimizer.step()
        return N_STEPS * B * T / (time.perf_counter() - start)

    def their_steps() -> float:
        start = time.perf_counter()
        for _ in range(N_STEPS):
            peer_optimizer.zero_grad(set_to_none=True)
            # the model moves labels on by itself, so it is given x for both
            theirs(x, labels=x).loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            peer_optimizer.step()
        return N_STEPS * B * T / (time.perf_counter() - start)

    def ceiling() -> float:
        a = torch.randn(1024, 1024)
        start = time.perf_counter()
        for _ in range(20):
            a @ a
        rate = 20 * 2 * 1024**3 / (time.perf_counter() - start)
        return rate / (6 * ours.n_parameters)

    our_steps(), their_steps(), ceiling()  # warm up
    compare(
        f"Training, gpt2 architecture, {ours.n_parameters:,} parameters, {B} rows of {T}, float32",
        "tokens/s",
        {
            "ours": our_steps,
            "floor: matrix products alone": ceiling,
            "a loop around GPT2LMHeadModel": their_steps,
        },
    )
