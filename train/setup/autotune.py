"""A run's plan, from trial updates: micro-batch, compiled or not, number of steps, intervals."""

import math
import resource
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.batches.sources import Source
from train.config import TrainConfig, TrainPlan
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.evaluate import TRAIN_TOKENS, evaluate, rows_at_once
from train.loop import backward, update
from train.monitoring.metrics import duration
from train.optim.optimizers import make_optimizer
from train.setup.memory import max_batch_size
from train.setup.regularization import by_epochs_of, most_decay, regularization
from train.trainer import Trainer

# Trial steps take this share of --minutes, or of a run whose steps are known; at most so long.
MEASURE_SHARE, MEASURE_SHARE_OF_STEPS, MEASURE_S = 0.02, 0.002, 5.0
EVAL_SHARE = 0.05  # of --minutes, at most, for evaluations and the saves before them
MAX_EVALS = 10
# A rough guess: 12 bytes a parameter with its optimizer's state are written, hashed, read back.
SAVE_BYTES_PER_S = 3e8
N_WARMUP = 2  # updates: kernels are chosen in the first, the second finds memory allocated
SAVE_S = 300  # between checkpoints, at most: what a crash may cost
# Compiling on a CPU takes 20 to 70 s and makes updates 1.22 to 1.30 times as fast: of ten minutes
# that leaves a gain of a tenth or more. gpt2 of 4 layers of 256 channels, in float32, gained only
# 1.06 times: it would lose 6 %. On a GPU the same minute is reported to gain a quarter and more.
COMPILED_FASTER = 1.25
# So runs from this many seconds on are compiled.
COMPILE_S = {"cpu": 600.0, "cuda": 300.0}


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """What trial updates measured on this machine, the slowest rank's where there are several."""

    step_s: float
    eval_s: float
    save_s: float
    spent_s: float  # until the trials were over
    batch_size: int  # what memory allowed
    compiled: bool


def autotune(
    config: TrainConfig,
    model: GPT,
    source: Source,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    by_epochs: Collection[str] = (),
    start_s: float | None = None,
) -> tuple[TrainConfig, TrainPlan, MeasuredSpeed]:
    """Return settings, the plan and the speed behind it, by updates at a learning rate of 0.

    They leave the weights alone. What is in ``by_epochs`` is made to suit the run's length.
    With --compile auto compiled updates are tried too, where the run is long enough to repay it.
    The run's own Trainer compiles the same network again, which PyTorch then has in its cache.
    --minutes are those since ``start_s``, by perf_counter.
    """
    start = time.perf_counter() if start_s is None else start_s
    # an optimizer of its own, whose state these steps may change
    trainer = Trainer(
        model, make_optimizer(model, config), source, config, device, group,
        batch_size=choose_batch_size(config, model.config, device, group),
    )  # fmt: skip
    max_steps = known_max_steps(config, trainer.tokens_per_step, source.tokens_per_epoch)
    trainer.warmup(0, backward)
    if group.world_size > 1:
        _timed(trainer)  # the first that communicates
    step_s = step_time(trainer, config, max_steps)
    eval_s = _eval_time(trainer)

    def planned(step_s: float, *, compiled: bool) -> tuple[MeasuredSpeed, TrainPlan]:
        spent_s, save_s = time.perf_counter() - start, 12 * model.n_parameters / SAVE_BYTES_PER_S
        speed = MeasuredSpeed(
            step_s=step_s, eval_s=eval_s, save_s=save_s, spent_s=spent_s,
            batch_size=trainer.batch_size, compiled=compiled,
        )  # fmt: skip
        # what follows from it must be the same on all ranks
        speed = MeasuredSpeed(**group.broadcast_from_rank0(lambda: asdict(speed)))
        return speed, make_plan(config, max_steps, speed)

    speed, plan = planned(step_s, compiled=trainer.compiled)
    pays_off = compile_pays_off(config, max_steps, device, step_s)
    # before compiling, as dropouts are part of what is compiled, which then reads more in its time
    faster = COMPILED_FASTER if pays_off and max_steps is None else 1.0
    epoch_steps = source.tokens_per_epoch / trainer.tokens_per_step
    config = regularized(config, model, by_epochs, faster * plan.max_steps, epoch_steps)
    if "dropout" in by_epochs and model.config.dropout:  # it takes a seventh of an update's time
        step_s = step_time(trainer, config, max_steps)
        speed, plan = planned(step_s, compiled=trainer.compiled)
        config = regularized(config, model, by_epochs, faster * plan.max_steps, epoch_steps)
    if pays_off or config.compile == "on":
        trainer.compile()
        compiled_s = step_time(trainer, config, max_steps)
        is_taken = trainer.compiled and (config.compile == "on" or compiled_s <= step_s)
        speed, plan = planned(compiled_s if is_taken else step_s, compiled=is_taken)
        if not speed.compiled:  # it reads no more than before
            config = regularized(config, model, by_epochs, plan.max_steps, epoch_steps)
    trainer.batches.close()
    trainer.model.zero_grad()
    return config, plan, speed


def choose_batch_size(
    config: TrainConfig, shape: ModelConfig, device: Device, group: ProcessGroup = SINGLE_PROCESS
) -> int:
    """Return the most rows that a micro-batch may have: --batch-size, or what fits on each rank."""
    return config.batch_size or -int(group.all_reduce_max(-max_batch_size(shape, device)))


def known_max_steps(
    config: TrainConfig, tokens_per_step: int, tokens_per_epoch: float
) -> int | None:
    """Return the steps of --max-steps, --tokens or --epochs, the last of which may go beyond.

    None with --minutes: how many fit into them is to be measured.
    """
    n_tokens = config.tokens
    if config.epochs is not None:
        n_tokens = math.ceil(config.epochs * tokens_per_epoch)
    return config.max_steps if n_tokens is None else max(1, -(-n_tokens // tokens_per_step))


def make_plan(config: TrainConfig, max_steps: int | None, speed: MeasuredSpeed) -> TrainPlan:
    """Return the steps and intervals of a run, and what the trials decided.

    With --minutes the steps are those that end on time; trials, evaluations and saves count.
    """
    n_evals = MAX_EVALS
    if max_steps is None:
        left_s = _run_s(config, max_steps, speed.step_s) - speed.spent_s
        each_s = speed.eval_s + speed.save_s
        n_evals = min(MAX_EVALS, max(1, int(EVAL_SHARE * left_s / each_s)))
        step_s = speed.step_s
        if config.eval_interval:
            step_s += each_s / config.eval_interval
        else:
            left_s -= n_evals * each_s
        max_steps = max(1, int(left_s / step_s))
    eval_interval = config.eval_interval or -(-max_steps // n_evals)
    save_interval = min(eval_interval, max(1, int(SAVE_S / speed.step_s)))
    return TrainPlan(
        max_steps=max_steps,
        batch_size=speed.batch_size,
        eval_interval=eval_interval,
        save_interval=config.save_interval or save_interval,
        compile="on" if speed.compiled else "off",
    )


def regularized(
    config: TrainConfig, model: GPT, names: Collection[str], n_steps: float, epoch_steps: float
) -> TrainConfig:
    """Make the settings ``names`` suit so many steps, the model's own and those returned."""
    chosen = regularization(names, n_steps / epoch_steps, by_epochs_of(model.config))
    if "weight_decay" in chosen:
        most = most_decay(config.matrix_lr or config.base_lr, epoch_steps)
        config = replace(config, weight_decay=min(chosen.pop("weight_decay"), most))
    model.set_dropout(**chosen)
    return config


def compile_pays_off(
    config: TrainConfig, max_steps: int | None, device: Device, step_s: float
) -> bool:
    """Tell whether a run whose updates take ``step_s`` is to be compiled, as --compile auto."""
    least_s = COMPILE_S.get(device.torch_device.type, math.inf)
    return config.compile == "auto" and _run_s(config, max_steps, step_s) >= least_s


def step_time(trainer: Trainer, config: TrainConfig, max_steps: int | None) -> float:
    """Return the median time of updates, in seconds; as many as are a small share of the run."""
    for _ in range(N_WARMUP):
        _timed(trainer)
    # with --minutes the number of steps depends on it, else only the ETA and the save interval
    times = [_timed(trainer) for _ in range(2 if max_steps is None else 1)]
    share = MEASURE_SHARE if max_steps is None else MEASURE_SHARE_OF_STEPS
    budget_s = min(MEASURE_S, share * _run_s(config, max_steps, times[0])) - sum(times)
    while (budget_s := budget_s - times[-1]) >= 0:
        n_threads = torch.get_num_threads()
        times.append(_timed(trainer))
        if torch.get_num_threads() != n_threads:  # another number is tried, or was and stays
            times = times[-1:]
    return median(times)


def _timed(trainer: Trainer) -> float:
    start = time.perf_counter()
    update(trainer, 0, lr=0.0)
    dt_s = trainer.group.all_reduce_max(time.perf_counter() - start)
    trainer.note_time(dt_s)
    return dt_s


def _eval_time(trainer: Trainer) -> float:
    """Estimate the time of an evaluation from one of few tokens."""
    source, n_rows = trainer.source, rows_at_once(trainer.device, trainer.block_size)
    few = source.eval_batches("val", 32 * trainer.block_size, n_rows)
    lengths = np.zeros(trainer.model.config.vocab_size, np.int64)  # bits a byte are not looked at
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        evaluate(trainer.model, few, lengths, trainer.device, trainer.group, source.objective)
    dt_s = time.perf_counter() - start
    n_batches = len(source.eval_batches("val", trainer.config.eval_tokens, n_rows))
    n_batches += len(source.eval_batches("train", TRAIN_TOKENS, n_rows))
    return dt_s * n_batches / len(few)


def _run_s(config: TrainConfig, max_steps: int | None, step_s: float) -> float:
    """Return how long a run is, of that many steps or else by --minutes."""
    return 60 * (config.minutes or 0.0) if max_steps is None else step_s * max_steps


def _peak_memory(device: Device) -> int:
    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def summary_lines(
    trainer: Trainer, plan: TrainPlan, speed: MeasuredSpeed, data: DataFolder
) -> list[str]:
    """Return what a run will do, a line for each part of it."""
    c, n, n_train = trainer.model.config, trainer.group.world_size, data.n_tokens("train")
    n_tokens = plan.max_steps * trainer.tokens_per_step
    n_epochs = n_tokens / trainer.source.tokens_per_epoch
    n_evals = -(-plan.max_steps // plan.eval_interval)
    left_s = plan.max_steps * speed.step_s + n_evals * (speed.eval_s + speed.save_s)
    end = time.strftime("%H:%M", time.localtime(time.time() + left_s))
    weights = "its shard of the weights" if trainer.is_sharded else "all weights"
    processes = f"{n} processes, each with {weights}, on " if n > 1 else ""
    micro_batches = f"{n} processes x " if n > 1 else ""
    micro_batches += f"{-(-trainer.n_rows // trainer.batch_size)} x {trainer.batch_size}"
    n_learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    adapters = f"adapters    {n_learned:,} of these parameters learn: of rank {trainer.config.lora}"
    return [
        f"device      {processes}{trainer.device}",
        f"model       {trainer.model.n_parameters:,} parameters: {c.n_layer} layers, {c.n_head} "
        f"heads, {c.n_embd} channels, context {c.block_size}",
        *([adapters] if trainer.config.lora else []),
        f"data        {data.path}: {n_train:,} tokens to train on, {data.n_tokens('val'):,} to "
        f"validate on; vocabulary of {c.vocab_size:,}",
        f"a step      {trainer.tokens_per_step:,} tokens: {micro_batches} rows of {c.block_size}",
        f"length      {plan.max_steps:,} steps, {n_tokens:,} tokens, {n_epochs:.2f} "
        f"epochs; evaluation each {plan.eval_interval:,} steps",
        f"memory      {_peak_memory(trainer.device) / 1e9:.1f} GB",
        f"expected    {duration(left_s)} ({speed.step_s * 1000:,.0f} ms a step): until about {end}",
    ]
