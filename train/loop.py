"""The loop: update, log, save, evaluate, until the last step, a reason to end, or a signal.

A checkpoint is written before the evaluation of the same step, so that a crash there loses
nothing; a run resumed from it evaluates again and goes on as if it had never stopped.

What is written leaves by two doors, _save and _record: where several processes train, only the
first goes through them.
"""

import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checkpoint import save_checkpoint
from common.dataset import DataFolder
from common.device import Device
from common.models.gpt import GPT
from common.run_dir import checkpoint_dir, shards_dir, write_pointer
from common.tokenizer import Tokenizer
from train.config import TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import full_state_dict, is_sharded, save_sharded, to_local
from train.evaluate import PROMPT_TOKENS, TRAIN_TOKENS, evaluate, sample_line, token_lengths
from train.lr_schedule import learning_rate_at
from train.monitoring.early_stopping import Losses, overfitting_line, reason_to_end
from train.monitoring.loggers import MetricsLogger
from train.monitoring.metrics import (
    StepTimer,
    append_metrics,
    evaluation_line,
    progress_line,
    read_history,
    saves_left,
    times_left,
)
from train.monitoring.mfu import mfu
from train.optim.group import OptimizerGroup, optimizer_state_dict
from train.signals import StopRequest
from train.step import Stepper, rows_per_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a run works with."""

    folder: Path
    model: GPT
    optimizer: OptimizerGroup
    data: DataFolder
    tokenizer: Tokenizer
    config: TrainConfig
    device: Device
    max_steps: int
    stepper: Stepper
    tracker: MetricsLogger
    group: ProcessGroup = SINGLE_PROCESS
    step_timer: StepTimer = field(default_factory=StepTimer)


@dataclass
class Progress:
    """How far a run is; saved in every checkpoint's state.json."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # since the run began, evaluations and saves included, stops not
    update_s: float = 0.0  # of them spent in updates
    eval_s: float = 0.0  # the last evaluation took this long, and the last save
    save_s: float = 0.0
    best_val_loss: float | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the last update, as it is logged
    n_skipped: int = 0  # updates whose loss or gradient was not finite
    n_bad: int = 0  # of them in a row, until now
    good_step: int = 0  # the last step whose weights gave a finite loss and gradient
    lr_scale: float = 1.0  # halved at each return to an earlier checkpoint
    n_returns: int = 0


class DivergedError(Exception):
    """The weights are no use any more: the loss, the gradient or they themselves are not finite."""


def train(run: Run, progress: Progress, stop: StopRequest) -> int | None:
    """Train from where ``progress`` is to the end; return the signal that ended it early, if any.

    Raises: DivergedError when only an earlier checkpoint can help; ``progress`` is how far it came.
    """

    def stop_signal() -> int | None:
        # of any rank: all have to stop after the same step
        return int(run.group.all_reduce_max(stop.requested() or 0)) or None

    first_step = progress.step
    lines = run.group.broadcast_from_rank0(
        lambda: [asdict(each) for each in read_history(run.folder)]
    )
    history = [Losses(**each) for each in lines]
    mark = replace(progress)  # where the speed is measured from
    while True:
        step = progress.step
        # with no step made there is nothing to save: the first one is made yet
        stopping = step > 0 and stop_signal() is not None
        eval_due = is_eval_step(step, run.config)
        if step > first_step:
            if step % run.config.log_interval == 0:
                mark = _log(run, progress, mark)
            if (step % run.config.log_interval == 0 or progress.n_bad) and not eval_due:
                _record(run, progress.record)
            # weights after a bad update are doubtful: saved only where something depends on it
            if (
                eval_due
                or stopping
                or (step % run.config.save_interval == 0 and not progress.n_bad)
            ):
                _save(run, progress)
        if eval_due and not stopping:
            if _evaluate(run, progress, history):
                return None
            stopping = stop_signal() is not None  # this step is saved already
        if stopping:
            return stop_signal()
        _update(run, progress)


def is_eval_step(step: int, config: TrainConfig) -> bool:
    """Tell whether a run is evaluated after ``step`` updates."""
    return step > 0 and (step % config.eval_interval == 0 or step == config.max_steps)


def first_said(step: int, config: TrainConfig) -> int:
    """Return the first step that a run which goes on after ``step`` puts on record.

    An evaluation that is due at that very step is made again, and its line written again.
    """
    return step + (0 if is_eval_step(step, config) else 1)


def _update(run: Run, progress: Progress) -> None:
    start = time.perf_counter()
    lr = progress.lr_scale * learning_rate_at(progress.step, run.max_steps, run.config)
    update = run.stepper.step(progress.step, progress.lr_scale)
    dt_s = time.perf_counter() - start
    run.step_timer.add(dt_s)
    block_size = run.model.config.block_size
    n_tokens = rows_per_step(run.config, block_size) * block_size
    if update.finite:
        progress.good_step, progress.n_bad = progress.step, 0
    else:
        progress.n_skipped += 1
        progress.n_bad += 1
    progress.step += 1
    progress.n_tokens += n_tokens
    progress.seconds += dt_s
    progress.update_s += dt_s
    progress.record = {
        "step": progress.step,
        "tokens": progress.n_tokens,
        "seconds": round(progress.seconds, 3),
        "loss": update.loss if math.isfinite(update.loss) else None,  # JSON knows no nan
        "lr": lr,
        "grad_norm": update.grad_norm if math.isfinite(update.grad_norm) else None,
        "tokens_per_second": round(n_tokens / dt_s, 1),
        "skipped_steps": progress.n_skipped,
    }
    if not update.finite:
        what = f"the loss is {update.loss}, the norm of the gradient {update.grad_norm}"
        log.warning("step %s: %s: update skipped, weights stay", f"{progress.step:,}", what)
        if progress.n_bad >= run.config.max_bad_steps:
            raise DivergedError(f"{what}, as after {progress.n_bad} updates in a row")


def _log(run: Run, progress: Progress, mark: Progress) -> Progress:
    """Show the progress line, its speed measured since ``mark``; return the new mark."""
    speed = (progress.n_tokens - mark.n_tokens) / (progress.update_s - mark.update_s)
    progress.record["tokens_per_second"] = round(speed, 1)
    if (share := mfu(run.model, run.device, speed, world_size=run.group.world_size)) is not None:
        progress.record["mfu"] = round(share, 4)
    done = progress.step - 1  # what follows this step is not done yet
    last, config = run.max_steps, run.config
    eta_s = (
        run.step_timer.step_s * (last - progress.step)
        + progress.eval_s * times_left(done, last, config.eval_interval)
        + progress.save_s * saves_left(done, last, config.save_interval, config.eval_interval)
    )
    log.info(progress_line(progress.record, last, eta_s))
    return replace(progress)


def _record(run: Run, record: dict[str, Any]) -> None:
    if run.group.is_rank0:
        append_metrics(run.folder, record)
        run.tracker.log(record)


def _save(run: Run, progress: Progress) -> None:
    start = time.perf_counter()
    finite = [to_local(weights).isfinite().all() for weights in run.model.parameters()]
    if run.group.all_reduce_max(not torch.stack(finite).all()):
        raise DivergedError("weights are no longer finite")
    state = {
        "progress": asdict(progress),
        "stepper": run.stepper.state(),
        "data_sha256": run.data.sha256,
    }
    optimizer: dict[str, Tensor] | Path = optimizer_state_dict(run.optimizer, run.model)
    weights = None
    if is_sharded(run.model):
        weights, optimizer = _gathered(run, progress.step)

    def save() -> None:
        save_checkpoint(
            run.folder,
            progress.step,
            run.model,
            optimizer,
            state,
            run.tokenizer,
            weights=weights,
            keep=run.config.keep,
            good_step=progress.good_step,
        )

    run.group.broadcast_from_rank0(save)
    progress.save_s = time.perf_counter() - start
    progress.seconds += progress.save_s


def _gathered(run: Run, step: int) -> tuple[dict[str, Tensor], Path]:
    """Return all weights, in the first process, and where each put its share of the optimizer's."""
    shards = shards_dir(run.folder, step)
    run.group.broadcast_from_rank0(lambda: shutil.rmtree(shards, ignore_errors=True))
    save_sharded(optimizer_state_dict(run.optimizer, run.model), shards)
    return full_state_dict(run.model, keep=run.group.is_rank0), shards


def _evaluate(run: Run, progress: Progress, history: list[Losses]) -> bool:
    """Score both splits, show and record it; tell whether there is a reason to end."""
    start = time.perf_counter()
    lengths = token_lengths(run.tokenizer)
    on_train, on_val = (
        evaluate(run.model, ids, lengths, run.device, most, run.group)
        for ids, most in (
            (run.data.tokens("train"), TRAIN_TOKENS),
            (run.data.tokens("val"), run.config.eval_tokens),
        )
    )
    if not (math.isfinite(on_train.loss) and math.isfinite(on_val.loss)):
        raise DivergedError(f"the loss is {on_train.loss} on train and {on_val.loss} on val")
    history.append(Losses(on_train.loss, on_val.loss))
    best = progress.best_val_loss is None or on_val.loss < progress.best_val_loss
    if best:
        progress.best_val_loss = on_val.loss
        best_now = checkpoint_dir(run.folder, progress.step)
        run.group.broadcast_from_rank0(lambda: write_pointer(run.folder, "best", best_now))
    record = progress.record | {
        "train_loss": on_train.loss,
        "val_loss": on_val.loss,
        "train_bpb": on_train.bpb,
        "val_bpb": on_val.bpb,
    }
    ended = reason_to_end(progress.step, run.max_steps, history, run.config)
    _record(run, record | ({"ended": ended} if ended else {}))
    log.info(evaluation_line(record, run.max_steps, best=best))
    if (warning := overfitting_line(history)) is not None:
        log.warning(warning)
    if not is_sharded(run.model):  # for this the first process would need all of the network
        prompt = run.data.tokens("val")[:PROMPT_TOKENS].tolist()
        run.group.broadcast_from_rank0(
            lambda: log.info(sample_line(run.model, run.tokenizer, prompt, run.config.seed))
        )
    if ended and progress.step < run.max_steps:
        log.info("ended after step %s: %s", f"{progress.step:,}", ended)
    progress.eval_s = time.perf_counter() - start
    progress.seconds += progress.eval_s
    return ended is not None
