"""Evaluation over fixed windows: the same number for the same weights, every time.

Loss is in nats a token; bits per byte weighs it by how much text a token stands for, so that runs
with different vocabularies compare.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.dataset import Ids
from common.device import Device
from common.inference.config import GenerateConfig
from common.inference.decoder import Decoder, generate
from common.inference.torch_backend import TorchBackend
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from train.data import read_rows
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import is_sharded

PROMPT_TOKENS, SAMPLE_TOKENS = 16, 64  # shown at each evaluation: a line or three
# How much of train is scored, evenly spread: enough to compare with val, and quick.
TRAIN_TOKENS = 1 << 16
# Tokens of one evaluation batch. On a CPU more fall out of its caches: of 4k to 64k tokens, 4k took
# a third of the time (0.8 M parameters, two cores).
BATCH_TOKENS = {"cpu": 1 << 12}
BATCH_TOKENS_ELSEWHERE = 1 << 15


@dataclass(frozen=True)
class Score:
    """Result over one split: mean loss in nats a token, and in bits a byte of text."""

    loss: float
    bpb: float
    n_tokens: int


def windows(ids: Ids, block_size: int, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, y) of single rows: end to end over all of ``ids``, or evenly spread over it.

    All, the shorter last window included, where it has at most ``max_tokens``.
    """
    n_targets = len(ids) - 1
    if n_targets > max_tokens:
        starts = np.linspace(0, n_targets - block_size, max(1, max_tokens // block_size))
        for start in starts.astype(np.int64):
            yield read_rows(ids, np.array([start]), block_size)
        return
    for start in range(0, n_targets, block_size):
        yield read_rows(ids, np.array([start]), min(block_size, n_targets - start))


def _batches(rows: Iterator[tuple[Tensor, Tensor]], n_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Join rows of equal length into batches of at most ``n_rows``."""
    held: list[tuple[Tensor, Tensor]] = []
    for row in rows:
        if held and (len(held) == n_rows or row[0].shape != held[0][0].shape):
            yield torch.cat([x for x, _ in held]), torch.cat([y for _, y in held])
            held = []
        held.append(row)
    if held:
        yield torch.cat([x for x, _ in held]), torch.cat([y for _, y in held])


def evaluate(
    model: GPT,
    ids: Ids,
    token_bytes: npt.NDArray[np.int64],
    device: Device,
    max_tokens: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Score:
    """Return the loss over fixed windows of ``ids``; token_bytes (V,) is the length of each id.

    Several processes share the batches out, and each returns the loss over all of them.
    """
    block_size = model.config.block_size
    batch_tokens = BATCH_TOKENS.get(device.torch_device.type, BATCH_TOKENS_ELSEWHERE)
    n_rows = max(1, batch_tokens // block_size)
    lengths = torch.from_numpy(token_bytes)
    nats, n_tokens, n_bytes = 0.0, 0, 0
    model.eval()
    # gathered weights that were made in inference mode could not be trained with later
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        for x, y, counts in _shared(_batches(windows(ids, block_size, max_tokens), n_rows), group):
            x, y = x.to(device.torch_device), y.to(device.torch_device)
            with device.autocast():
                loss = float(model(x, y))
            if counts:
                nats += loss * y.numel()
                n_tokens += y.numel()
                n_bytes += int(lengths[y.cpu()].sum())
    if is_sharded(
        model
    ):  # what is gathered last stays so, until a backward pass, in place of shares
        cast(Any, model).reshard()
    model.train()
    nats, all_tokens, all_bytes = group.all_reduce_sum(nats, n_tokens, n_bytes)
    return Score(nats / all_tokens, nats / math.log(2) / max(1, all_bytes), int(all_tokens))


def _shared(
    batches: Iterator[tuple[Tensor, Tensor]], group: ProcessGroup
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield (x, y, whether it counts): every batch counts in one process.

    All processes get equally many, as a sharded network needs them all for each.
    """
    mine = None
    for number, (x, y) in enumerate(batches):
        place = number % group.world_size
        if place == 0:
            mine = x, y, False
        if place == group.rank:
            mine = x, y, True
        if place == group.world_size - 1 and mine is not None:
            yield mine
            mine = None
    if mine is not None:
        yield mine


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return (V,) the bytes of text that each id stands for."""
    return np.array([len(token) for token in tokenizer.token_bytes], np.int64)


def sample_line(model: GPT, tokenizer: Tokenizer, prompt: list[int], seed: int) -> str:
    """Return what the model writes after ``prompt``: the same for the same weights."""
    config = GenerateConfig(max_new_tokens=SAMPLE_TOKENS, seed=seed)
    model.eval()
    # of PyTorch's operators: a few tokens are not worth being compiled for
    tokens = generate(Decoder(TorchBackend(model), tokenizer), prompt, config)
    written = tokenizer.decode_bytes(token.idx for token in tokens)  # end-of-text adds no bytes
    model.train()
    begin = tokenizer.decode_bytes(prompt).decode("utf-8", "replace")
    return f"  it was given:  {begin!r}\n  and continued: {written.decode('utf-8', 'replace')!r}"
