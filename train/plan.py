"""The plan of a run, made before its first step: how fast, how many steps, how much memory."""

import resource
import sys
import time
from dataclasses import dataclass, replace
from statistics import median

import torch

from common.device import Device
from common.model import GPT
from common.tokenfile import DataFolder
from train.batches import micro_batch_rows
from train.config import TrainConfig
from train.evaluate import TRAIN_TOKENS, evaluate, token_lengths
from train.metrics import duration
from train.optimizer import make_optimizer
from train.step import rows_per_step, train_step

MEASURE_S = 2.0  # of trial steps, after one that warms up
MEASURE_SHARE = 0.03  # of --minutes, where that is more
EVAL_SHARE = 0.15  # of --minutes, at most, goes into evaluations
MOST_EVALS = 10
SAVE_S = 300  # between checkpoints, at most: what a crash may cost
# Tokens of a micro-batch on a CPU: more fall out of its caches. Of 256 to 4,096 tokens, 1,024 were
# quickest, a sixth quicker than 4,096 (2.6 M parameters, two cores).
CPU_TOKENS = 1_024
# Share of a GPU's free memory that one micro-batch may fill: the estimate below is rough.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Speed:
    """What trial steps measured on this machine."""

    step_s: float
    eval_s: float
    spent_s: float
    memory_bytes: int


def rows_that_fit(model: GPT, device: Device) -> int:
    """Return how many rows of block_size tokens a micro-batch may have, by a rough estimate."""
    c = model.config
    if device.torch_device.type == "cpu":
        return max(1, CPU_TOKENS // c.block_size)
    # float32 numbers kept for the backward pass: about 16 C + 3 inner in a block; scores 3 times
    per_token_bytes = 4 * (c.n_layer * (16 * c.n_embd + 3 * c.inner_size) + 3 * c.vocab_size)
    if device.torch_device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device.torch_device)[0]
    else:
        free_bytes = 4 << 30
    return max(1, int(MEMORY_SHARE * free_bytes / (per_token_bytes * c.block_size)))


def fix_batch(config: TrainConfig, model: GPT, device: Device) -> TrainConfig:
    """Return the config with batch_size filled in: it divides an update's rows evenly."""
    n_rows = rows_per_step(config, model.config.block_size)
    most = config.batch_size or rows_that_fit(model, device)
    return replace(config, batch_size=micro_batch_rows(n_rows, most))


def measure(config: TrainConfig, model: GPT, data: DataFolder, device: Device) -> Speed:
    """Time updates, at a learning rate of 0 that leaves the weights alone, and evaluation."""
    begin = time.perf_counter()
    optimizer = make_optimizer(model, config)
    step_times: list[float] = []
    budget_s = max(MEASURE_S, MEASURE_SHARE * 60 * (config.minutes or 0))
    while len(step_times) < 3 or sum(step_times[1:]) < budget_s:
        start = time.perf_counter()
        train_step(model, optimizer, data, config, device, step=0, lr=0.0)
        step_times.append(time.perf_counter() - start)
    optimizer.zero_grad(set_to_none=True)
    n_trial = 32 * model.config.block_size
    start = time.perf_counter()
    score = evaluate(model, data.tokens("val"), token_lengths(data.tokenizer()), device, n_trial)
    per_token_s = (time.perf_counter() - start) / score.n_tokens
    n_eval = min(data.n_tokens("val"), config.eval_tokens)
    n_eval += min(data.n_tokens("train"), TRAIN_TOKENS)
    return Speed(
        median(step_times[1:]), per_token_s * n_eval, time.perf_counter() - begin, _memory(device)
    )


def _memory(device: Device) -> int:
    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def fix_length(config: TrainConfig, speed: Speed) -> TrainConfig:
    """Return the config with max_steps and the intervals filled in.

    With --minutes the steps are those that end on time, trials and evaluations counted.
    """
    n_evals = MOST_EVALS
    max_steps = config.max_steps
    if max_steps is None:
        left_s = 60 * (config.minutes or 0) - speed.spent_s
        n_evals = min(MOST_EVALS, max(1, int(EVAL_SHARE * left_s / max(speed.eval_s, 1e-9))))
        step_s = speed.step_s
        if config.eval_interval:
            step_s += speed.eval_s / config.eval_interval
        else:
            left_s -= n_evals * speed.eval_s
        max_steps = max(1, int(left_s / step_s))
    eval_interval = config.eval_interval or -(-max_steps // n_evals)
    return replace(
        config,
        max_steps=max_steps,
        minutes=None,
        eval_interval=eval_interval,
        save_interval=config.save_interval
        or min(eval_interval, max(1, int(SAVE_S / speed.step_s))),
    )


def plan_lines(
    config: TrainConfig, model: GPT, data: DataFolder, device: Device, speed: Speed
) -> list[str]:
    """Return the plan as a person reads it."""
    block_size = model.config.block_size
    n_rows = rows_per_step(config, block_size)
    max_steps = config.max_steps or 0
    n_train = data.n_tokens("train")
    left_s = max_steps * speed.step_s + speed.eval_s * -(-max_steps // config.eval_interval)
    end = time.strftime("%H:%M", time.localtime(time.time() + left_s))
    accumulation = n_rows // config.batch_size
    return [
        f"device      {device}",
        f"model       {model.n_parameters:,} parameters: {model.config.n_layer} layers, "
        f"{model.config.n_head} heads, {model.config.n_embd} channels, context {block_size}",
        f"data        {data.path}: {n_train:,} tokens to train on, {data.n_tokens('val'):,} to "
        f"validate on; vocabulary of {model.config.vocab_size:,}",
        f"a step      {n_rows * block_size:,} tokens: {accumulation} x {config.batch_size} rows of "
        f"{block_size}",
        f"length      {max_steps:,} steps, {max_steps * n_rows * block_size:,} tokens, "
        f"{max_steps * n_rows * block_size / n_train:.2f} epochs; evaluation each "
        f"{config.eval_interval:,} steps",
        f"memory      {speed.memory_bytes / 1e9:.1f} GB",
        f"expected    {duration(left_s)} ({speed.step_s * 1000:,.0f} ms a step): until about {end}",
    ]
