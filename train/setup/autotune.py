"""The plan of a run, made before its first step: how fast, how many steps, how much memory."""

import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median

import torch

from common.dataset import DataFolder
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig, TrainPlan
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import is_sharded
from train.evaluate import TRAIN_TOKENS, evaluate, token_lengths
from train.loop import backward, update
from train.monitoring.metrics import duration
from train.optim.group import make_optimizer
from train.setup.memory import max_batch_size
from train.trainer import Trainer, micro_batch_rows

# Of trial steps, after those that warm up: this share of --minutes, or of a run whose steps are
# known, and at most so many seconds.
MEASURE_SHARE, MEASURE_SHARE_OF_STEPS, MEASURE_S = 0.02, 0.002, 5.0
EVAL_SHARE = 0.05  # of --minutes, at most, goes into evaluations and the saves before them
MOST_EVALS = 10
# A rough guess at what saving takes: 12 bytes a parameter with its optimizer's state, which are
# written, hashed and read back.
SAVE_BYTES_PER_S = 3e8
FULL_DROPOUT_EPOCHS = 2.0
N_WARM_UP = 2  # updates: kernels are chosen in the first, the second finds memory of its own
SAVE_S = 300  # between checkpoints, at most: what a crash may cost
# Runs from this many seconds on are compiled. On a CPU it took 40 to 70 s and made updates 1.06
# times (gpt2, 4 layers of 256 channels) to 1.22 times (tiny) as fast: half an hour loses 3 % at
# worst. On a GPU the same minute is said to buy a quarter and more.
COMPILE_S = {"cpu": 1800.0, "cuda": 300.0}


@dataclass(frozen=True)
class MeasuredSpeed:
    """What trial steps measured on this machine."""

    step_s: float
    eval_s: float
    save_s: float
    spent_s: float
    memory_bytes: int
    batch_size: int  # what memory allowed
    compiled: bool


def autotune(
    config: TrainConfig,
    model: GPT,
    data: DataFolder,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[TrainPlan, MeasuredSpeed]:
    """Return what ``config`` leaves open, decided by memory and speed on this machine."""
    batch_size = choose_batch_size(config, model, device, group)
    max_steps = known_max_steps(config, model.config.block_size, data)
    speed = measure_speed(
        config, model, data, device, group, batch_size=batch_size, max_steps=max_steps
    )
    return make_plan(config, max_steps, speed), speed


def choose_batch_size(
    config: TrainConfig, model: GPT, device: Device, group: ProcessGroup = SINGLE_PROCESS
) -> int:
    """Return the rows of a micro-batch: they divide those of an update, of each rank, evenly."""
    block_size = model.config.block_size
    n_rows = group.rows_per_rank(config.rows_per_step(block_size), block_size)
    most = config.batch_size or -int(group.all_reduce_max(-max_batch_size(model.config, device)))
    return micro_batch_rows(n_rows, most)


def known_max_steps(config: TrainConfig, block_size: int, data: DataFolder) -> int | None:
    """Return the steps of --max-steps, --tokens or --epochs, the last of which may go beyond.

    None with --minutes: how many fit into them is to be measured.
    """
    n_tokens = config.tokens
    if config.epochs is not None:
        n_tokens = math.ceil(config.epochs * data.n_tokens("train"))
    if n_tokens is None:
        return config.max_steps
    return max(1, -(-n_tokens // (config.rows_per_step(block_size) * block_size)))


def measure_speed(
    config: TrainConfig,
    model: GPT,
    data: DataFolder,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    batch_size: int,
    max_steps: int | None,
) -> MeasuredSpeed:
    """Time updates, at a learning rate of 0 that leaves the weights alone, and evaluation.

    With --compile auto also compiled ones, where the run is long enough to repay it. The run's own
    Trainer compiles the same network again, which PyTorch then has in its cache.
    """
    begin = time.perf_counter()
    # an optimizer of its own, which these steps may teach
    optimizer = make_optimizer(model, config)
    compiled = config.compile == "on"
    trainer = Trainer(
        model, optimizer, data, config, device, group, batch_size=batch_size, compiled=compiled
    )
    trainer.warmup(0, backward)
    if group.world_size > 1:
        _timed(trainer)  # before those that are timed, the first that communicates
    step_s, forward = step_time(trainer, config, max_steps), trainer.forward
    if compile_pays_off(config, max_steps, device, step_s):
        forward.compile()
        compiled_s = step_time(trainer, config, max_steps)
        if compiled_s > step_s:
            forward.use_eager()
        step_s = min(step_s, compiled_s)
    trainer.windows.close()
    optimizer.zero_grad()
    n_trial = 32 * model.config.block_size
    lengths = token_lengths(data.tokenizer())
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        score = evaluate(model, data.tokens("val"), lengths, device, n_trial, group)
    per_token_s = (time.perf_counter() - start) / score.n_tokens
    n_eval = min(data.n_tokens("val"), config.eval_tokens)
    n_eval += min(data.n_tokens("train"), TRAIN_TOKENS)
    spent_s = time.perf_counter() - begin
    speed = MeasuredSpeed(
        step_s,
        per_token_s * n_eval,
        12 * model.n_parameters / SAVE_BYTES_PER_S,
        spent_s,
        _memory(device),
        trainer.batch_size,
        forward.compiled,
    )
    # what follows from it must be the same in all processes
    return MeasuredSpeed(**group.broadcast_from_rank0(lambda: asdict(speed)))


def _run_s(config: TrainConfig, max_steps: int | None, step_s: float) -> float:
    """Return how long a run is, of that many steps or else by --minutes."""
    if max_steps is not None:
        return step_s * max_steps
    assert config.minutes is not None
    return 60 * config.minutes


def compile_pays_off(
    config: TrainConfig, max_steps: int | None, device: Device, step_s: float
) -> bool:
    """Tell whether a run whose updates take ``step_s`` is to be compiled, as --compile auto."""
    least_s = COMPILE_S.get(device.torch_device.type, math.inf)
    return config.compile == "auto" and _run_s(config, max_steps, step_s) >= least_s


def step_time(trainer: Trainer, config: TrainConfig, max_steps: int | None) -> float:
    """Return the median time of updates, in seconds; as many as are a small share of the run."""
    for _ in range(N_WARM_UP):
        _timed(trainer)
    # --minutes hangs on the speed; without it, only what is said and when it is saved do
    times = [_timed(trainer) for _ in range(2 if max_steps is None else 1)]
    share = MEASURE_SHARE if max_steps is None else MEASURE_SHARE_OF_STEPS
    budget_s = min(MEASURE_S, share * _run_s(config, max_steps, times[0])) - sum(times)
    while (budget_s := budget_s - times[-1]) >= 0:
        times.append(_timed(trainer))
    return median(times)


def _timed(trainer: Trainer) -> float:
    start = time.perf_counter()
    update(trainer, 0, lr=0.0)
    return trainer.group.all_reduce_max(time.perf_counter() - start)


def _memory(device: Device) -> int:
    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def make_plan(config: TrainConfig, max_steps: int | None, speed: MeasuredSpeed) -> TrainPlan:
    """Return the steps and intervals of a run, and what the trials decided.

    With --minutes the steps are those that end on time; trials, evaluations and saves count.
    """
    n_evals = MOST_EVALS
    if max_steps is None:
        left_s = _run_s(config, max_steps, speed.step_s) - speed.spent_s
        each_s = speed.eval_s + speed.save_s
        n_evals = min(MOST_EVALS, max(1, int(EVAL_SHARE * left_s / each_s)))
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


def ngram_dropout(n_tokens: int, shape: ModelConfig, data: DataFolder) -> float:
    """Return the preset's share of tokens without n-grams for a run over ``n_tokens``.

    Text that is read for the first time is not yet known by heart: below two epochs the share is
    smaller, in proportion. Measured at half an epoch: tests/bench/RECIPE.md.
    """
    n_epochs = n_tokens / data.n_tokens("train")
    return round(shape.ngram_dropout * min(1.0, n_epochs / FULL_DROPOUT_EPOCHS), 4)


def summary_lines(
    config: TrainConfig,
    plan: TrainPlan,
    model: GPT,
    data: DataFolder,
    device: Device,
    speed: MeasuredSpeed,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[str]:
    """Return the plan as a person reads it."""
    block_size = model.config.block_size
    n_rows, max_steps = config.rows_per_step(block_size), plan.max_steps
    n_train = data.n_tokens("train")
    n_evals = -(-max_steps // plan.eval_interval)
    left_s = max_steps * speed.step_s + n_evals * (speed.eval_s + speed.save_s)
    end = time.strftime("%H:%M", time.localtime(time.time() + left_s))
    accumulation = n_rows // group.world_size // plan.batch_size
    processes = f"{group.world_size} processes x " if group.world_size > 1 else ""
    if group.world_size > 1:
        together = (
            "each with its share of the weights" if is_sharded(model) else "each with all weights"
        )
        device_line = f"device      {group.world_size} processes, {together}, on {device}"
    else:
        device_line = f"device      {device}"
    return [
        device_line,
        f"model       {model.n_parameters:,} parameters: {model.config.n_layer} layers, "
        f"{model.config.n_head} heads, {model.config.n_embd} channels, context {block_size}",
        f"data        {data.path}: {n_train:,} tokens to train on, {data.n_tokens('val'):,} to "
        f"validate on; vocabulary of {model.config.vocab_size:,}",
        f"a step      {n_rows * block_size:,} tokens: {processes}{accumulation} x "
        f"{plan.batch_size} rows of {block_size}",
        f"length      {max_steps:,} steps, {max_steps * n_rows * block_size:,} tokens, "
        f"{max_steps * n_rows * block_size / n_train:.2f} epochs; evaluation each "
        f"{plan.eval_interval:,} steps",
        f"memory      {speed.memory_bytes / 1e9:.1f} GB",
        f"expected    {duration(left_s)} ({speed.step_s * 1000:,.0f} ms a step): until about {end}",
    ]
