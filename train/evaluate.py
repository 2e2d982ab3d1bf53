"""Evaluation over fixed windows: the same number for the same weights, every time.

Loss is in nats a token; bits per byte weighs it by how much text a token stands for, so that runs
with different vocabularies compare.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from common.dataset import Ids
from common.device import Device
from common.inference.decoder import Decoder, generate
from common.inference.torch_backend import TorchBackend
from common.models.config import GenerateConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from train.data import cut_windows
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import is_sharded

PROMPT_TOKENS, SAMPLE_TOKENS = 16, 64  # shown at each evaluation: a line or three
# How much of train is scored, evenly spread: enough to compare with val, and quick.
TRAIN_TOKENS = 1 << 16
# Tokens of one evaluation batch. On a CPU more fall out of its caches: of 4k to 64k tokens, 4k took
# a third of the time (0.8 M parameters, two cores).
BATCH_TOKENS = {"cpu": 1 << 12}


@dataclass(frozen=True)
class Score:
    """Result over one split: mean loss in nats a token, and in bits a byte of text."""

    loss: float
    bpb: float
    n_tokens: int


def eval_batches(
    ids: Ids, block_size: int, max_tokens: int, n_rows: int
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Return (starts, length) of the windows in each batch: at most ``n_rows``, of equal length.

    End to end over ``ids``, the shorter last window included, where there are at most
    ``max_tokens`` to predict; else spread evenly over it.
    """
    n_targets = len(ids) - 1
    starts, rest = np.arange(0, n_targets - block_size + 1, block_size), n_targets % block_size
    if n_targets > max_tokens:
        spread = np.linspace(0, n_targets - block_size, max(1, max_tokens // block_size))
        starts, rest = spread.astype(np.int64), 0
    batches = [(starts[i : i + n_rows], block_size) for i in range(0, len(starts), n_rows)]
    return batches + ([(np.array([n_targets - rest]), rest)] if rest else [])


def evaluate(
    model: GPT,
    ids: Ids,
    token_bytes: npt.NDArray[np.int64],
    device: Device,
    max_tokens: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Score:
    """Return the loss over fixed windows of ``ids``; token_bytes (V,) is the length of each id.

    Each rank scores its share of the batches; all return the loss over all of them.
    """
    block_size = model.config.block_size
    n_rows = max(1, BATCH_TOKENS.get(device.torch_device.type, 1 << 15) // block_size)
    batches = eval_batches(ids, block_size, max_tokens, n_rows)
    lengths = torch.from_numpy(token_bytes)
    nats, n_tokens, n_bytes = 0.0, 0, 0
    model.eval()
    # gathered weights that were made in inference mode could not be trained with later
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        for first in range(0, len(batches), group.world_size):
            # sharded, all ranks are needed for each pass: without a batch left, one makes another's
            own = first + group.rank
            counts = own < len(batches)
            windows = cut_windows(ids, *batches[own if counts else first])  # (B, T + 1)
            targets, rows = windows[:, 1:], windows.to(device.torch_device)
            with device.autocast():
                loss = float(model(rows[:, :-1], rows[:, 1:]))
            if counts:
                nats += loss * targets.numel()
                n_tokens += targets.numel()
                n_bytes += int(lengths[targets].sum())
    if is_sharded(model):  # else what was gathered last stays so until a backward pass
        cast(Any, model).reshard()
    model.train()
    nats, all_tokens, all_bytes = group.all_reduce(nats, n_tokens, n_bytes)
    return Score(nats / all_tokens, nats / math.log(2) / max(1, all_bytes), int(all_tokens))


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return (V,) the bytes of text that each id stands for."""
    return np.array([len(token) for token in tokenizer.token_bytes], np.int64)


def sample_line(model: GPT, tokenizer: Tokenizer, ids: Ids | list[int], seed: int) -> str:
    """Return what the model writes after the first of ``ids``: the same for the same weights."""
    prompt = [int(idx) for idx in ids[:PROMPT_TOKENS]]
    config = GenerateConfig(max_new_tokens=SAMPLE_TOKENS, seed=seed)
    model.eval()
    # of PyTorch's operators: a few tokens are not worth being compiled for
    tokens = generate(Decoder(TorchBackend(model), tokenizer), prompt, config)
    written = tokenizer.decode_bytes(token.idx for token in tokens)  # end-of-text adds no bytes
    model.train()
    begin = tokenizer.decode_bytes(prompt).decode("utf-8", "replace")
    return f"  it was given:  {begin!r}\n  and continued: {written.decode('utf-8', 'replace')!r}"
