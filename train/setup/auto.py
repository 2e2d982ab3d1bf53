"""Which network --preset auto is: by the device, the vocabulary, the text and the time."""

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from common.dataset import SPLITS, DataFolder
from common.device import Device, set_matmul_precision
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.setup.memory import max_batch_size
from train.setup.regularization import MANY_IDS

log = logging.getLogger(__name__)

LARGER: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 256}
LARGER_CONTEXT = 256
SIZES = {*LARGER, "head_dim", "n_kv_head", "n_inner"}
# From where the larger network reads a text so often, but of a short one so much at least, and of a
# long one so much in any case, it was better in what was measured: tests/bench/RECIPE.md.
LEAST_EPOCHS = 1.75
LEAST_TOKENS, ENOUGH_TOKENS = 1_500_000, 4_500_000
LEAST_MINUTES = 0.25  # in less no CPU reads so many
THREADS_EXPONENT = 0.68  # two were 1.6 times as fast as one; more were not at hand
# Forward and back are 205 ms of the 266 of a step; n-gram tables and the optimizer take the rest.
UPDATE_SHARE = 0.77


def auto_preset(device: str, vocab_size: int) -> str:
    """Return which preset auto is, on this type of device and for a vocabulary of this size."""
    if device != "cpu":
        return "small"
    return "tiny" if vocab_size < MANY_IDS else "tiny-portable"


def larger_with_time(
    shape: ModelConfig,
    given: Collection[str],
    config: TrainConfig,
    data: DataFolder,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> ModelConfig:
    """Return the preset's ``shape`` or, where --minutes are enough for it, a larger one.

    One whose layers, heads or channels are ``given`` stays, and that of characters, of which the
    larger was no better. How many tokens are read in the time is measured, within a second or two.
    """
    minutes, context = config.minutes or 0.0, LARGER_CONTEXT
    if "block_size" in given:
        context = shape.block_size
    n_tokens = {split: data.n_tokens(split) for split in SPLITS}
    if (
        device.torch_device.type != "cpu"
        or minutes < LEAST_MINUTES
        or data.meta["tokenizer"]["kind"] == "char"
        or not SIZES.isdisjoint(given)
        or min(n_tokens.values()) <= context
        or config.rows_per_step(context) % group.world_size
    ):
        return shape
    larger = replace(shape, **LARGER, block_size=context)
    speed = UPDATE_SHARE * tokens_per_second(larger, config, device, group)
    # each rank would decide by its own number of threads
    n_read = group.broadcast_from_rank0(lambda: 60 * minutes * speed)
    if not is_enough(n_read, n_tokens["train"]):
        return shape
    log.info("auto        the larger network: in the time it can read %s tokens", f"{n_read:,.0f}")
    return larger


def is_enough(n_read: float, n_tokens: int) -> bool:
    """Tell whether the larger network is the better one that reads ``n_read`` of ``n_tokens``."""
    return n_read >= min(max(LEAST_EPOCHS * n_tokens, LEAST_TOKENS), ENOUGH_TOKENS)


def tokens_per_second(
    shape: ModelConfig, config: TrainConfig, device: Device, group: ProcessGroup = SINGLE_PROCESS
) -> float:
    """Estimate forward and back, of all processes, in a network of this shape without tables.

    Measured on one thread: several beside a busy process may take 50 times as long.
    """
    set_matmul_precision(device.torch_device)
    model = GPT(replace(shape, ngrams=0, ngram_dim=0, ngram_min_count=0)).train()
    n_rows = config.rows_per_step(shape.block_size) // group.world_size
    n_rows = min(n_rows, config.batch_size or max_batch_size(shape, device))
    idx = torch.zeros(n_rows, shape.block_size, dtype=torch.int64)
    n_threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(3):  # the first chooses kernels
            start = time.perf_counter()
            with device.autocast():
                loss = model(idx, idx)
            loss.backward()
            times.append(group.all_reduce_max(time.perf_counter() - start))
    finally:
        torch.set_num_threads(n_threads)
    return float(group.world_size * idx.numel() / min(times[1:]) * n_threads**THREADS_EXPONENT)
