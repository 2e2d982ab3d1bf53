"""Which network --preset auto is: by the device, the vocabulary, the text and the time."""

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from common.dataset import SPLITS, DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup

log = logging.getLogger(__name__)

LARGER: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 256}
LARGER_CONTEXT = 256
MANY_IDS = 8_000  # of 8,197 tables of n-grams gained nothing: tests/bench/RECIPE.md
# The larger network is the better one from where it reads a text so often, but of a short one so
# much at least, and of a long one so much in any case: measured, tests/bench/RECIPE.md.
LEAST_EPOCHS = 1.75
LEAST_TOKENS, ENOUGH_TOKENS = 1_500_000, 4_500_000
THREADS_EXPONENT = 0.68  # two were 1.6 times as fast as one
UPDATE_SHARE = 0.8  # of a run's time is forward and back; optimizer, tables, evaluations the rest


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

    One whose layers, heads or channels are ``given`` stays. How many tokens are read in the time is
    measured, within a second or two.
    """
    on_cpu = device.torch_device.type == "cpu"
    if not on_cpu or config.minutes is None or not LARGER.keys().isdisjoint(given):
        return shape
    context = shape.block_size if "block_size" in given else LARGER_CONTEXT
    larger = replace(shape, **LARGER, block_size=context)
    if min(data.n_tokens(split) for split in SPLITS) <= larger.block_size:
        return shape
    n_read = 60 * config.minutes * UPDATE_SHARE * tokens_per_second(larger, config, device, group)
    if not is_enough(n_read, n_tokens := data.n_tokens("train")):
        return shape
    times = f"{n_read / n_tokens:.1f} times"
    log.info("auto        the larger network: it can read the text about %s in the time", times)
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
    model = GPT(replace(shape, ngrams=0, ngram_dim=0, ngram_min_count=0)).train()
    n_rows = config.rows_per_step(shape.block_size)
    idx = torch.zeros(-(-n_rows // group.world_size), shape.block_size, dtype=torch.int64)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(3):  # the first chooses kernels
        start = time.perf_counter()
        with device.autocast():
            loss = model(idx, idx)
        loss.backward()
        step_s = group.all_reduce_max(time.perf_counter() - start)
    torch.set_num_threads(n_threads)
    return float(n_rows * shape.block_size / step_s * n_threads**THREADS_EXPONENT)
