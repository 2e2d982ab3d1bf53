"""The loop: update, log, save, evaluate, until the last step or a signal.

A checkpoint is written before the evaluation of the same step, so that a crash there loses
nothing; a run resumed from it evaluates again and goes on as if it had never stopped.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import checkpoint_folder, point, save_checkpoint
from common.device import Device
from common.model import GPT
from common.tokenfile import DataFolder
from common.tokenizer import Tokenizer
from train.config import TrainConfig
from train.evaluate import PROMPT_TOKENS, TRAIN_TOKENS, evaluate, sample_line, token_lengths
from train.metrics import append_metrics, evaluation_line, progress_line
from train.optimizer import optimizer_tensors
from train.schedule import learning_rate_at
from train.signals import StopRequest
from train.step import diverged, rows_per_step, train_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a run works with."""

    folder: Path
    model: GPT
    optimizer: torch.optim.AdamW
    data: DataFolder
    tokenizer: Tokenizer
    config: TrainConfig
    device: Device
    max_steps: int


@dataclass
class Progress:
    """How far a run is; saved in every checkpoint's state.json."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # since the run began, evaluations and saves included, stops not
    update_s: float = 0.0  # of them spent in updates
    best_val_loss: float | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the last update, as it is logged


def train(run: Run, progress: Progress) -> int | None:
    """Train from where ``progress`` is to the last step; return the signal that ended it early."""
    config, first_step = run.config, progress.step
    mark = replace(progress)  # where the speed is measured from
    with StopRequest() as stop:
        while True:
            step = progress.step
            stopping = stop.signal is not None
            eval_due = is_eval_step(step, run)
            if step > first_step:
                if step % config.log_interval == 0:
                    mark = _log(run, progress, mark)
                    if not eval_due:
                        append_metrics(run.folder, progress.record)
                if eval_due or stopping or step % config.save_interval == 0:
                    _save(run, progress)
            if eval_due and not stopping:
                _evaluate(run, progress)
            if stopping or step == run.max_steps:
                return stop.signal
            _update(run, progress)


def is_eval_step(step: int, run: Run) -> bool:
    """Tell whether the run is evaluated after ``step`` updates."""
    return step > 0 and (step % run.config.eval_interval == 0 or step == run.max_steps)


def _update(run: Run, progress: Progress) -> None:
    start = time.perf_counter()
    lr = learning_rate_at(progress.step, run.max_steps, run.config)
    loss, grad_norm = train_step(
        run.model, run.optimizer, run.data, run.config, run.device, step=progress.step, lr=lr
    )
    dt_s = time.perf_counter() - start
    block_size = run.model.config.block_size
    n_tokens = rows_per_step(run.config, block_size) * block_size
    progress.step += 1
    progress.n_tokens += n_tokens
    progress.seconds += dt_s
    progress.update_s += dt_s
    progress.record = {
        "step": progress.step,
        "tokens": progress.n_tokens,
        "seconds": round(progress.seconds, 3),
        "loss": loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "tokens_per_second": round(n_tokens / dt_s, 1),
    }


def _log(run: Run, progress: Progress, mark: Progress) -> Progress:
    """Show the progress line, its speed measured since ``mark``; return the new mark."""
    speed = (progress.n_tokens - mark.n_tokens) / (progress.update_s - mark.update_s)
    progress.record["tokens_per_second"] = round(speed, 1)
    # evaluations are part of what is left, as they were part of what is done
    eta_s = progress.seconds / progress.step * (run.max_steps - progress.step)
    log.info(progress_line(progress.record, run.max_steps, eta_s))
    return replace(progress)


def _save(run: Run, progress: Progress) -> None:
    start = time.perf_counter()
    if not all(bool(weights.isfinite().all()) for weights in run.model.parameters()):
        raise diverged(progress.step, "weights are no longer finite", run.config)
    state = {"progress": asdict(progress), "data_sha256": run.data.sha256}
    tensors = optimizer_tensors(run.optimizer, run.model)
    save_checkpoint(run.folder, progress.step, run.model, tensors, state, run.tokenizer)
    progress.seconds += time.perf_counter() - start


def _evaluate(run: Run, progress: Progress) -> None:
    start = time.perf_counter()
    lengths = token_lengths(run.tokenizer)
    on_train, on_val = (
        evaluate(run.model, ids, lengths, run.device, most)
        for ids, most in (
            (run.data.tokens("train"), TRAIN_TOKENS),
            (run.data.tokens("val"), run.config.eval_tokens),
        )
    )
    if not (math.isfinite(on_train.loss) and math.isfinite(on_val.loss)):
        what = f"the loss is {on_train.loss} on train and {on_val.loss} on val"
        raise diverged(progress.step, what, run.config)
    best = progress.best_val_loss is None or on_val.loss < progress.best_val_loss
    if best:
        progress.best_val_loss = on_val.loss
        point(run.folder, "best", checkpoint_folder(run.folder, progress.step))
    record = progress.record | {
        "train_loss": on_train.loss,
        "val_loss": on_val.loss,
        "train_bpb": on_train.bpb,
        "val_bpb": on_val.bpb,
    }
    append_metrics(run.folder, record)
    log.info(evaluation_line(record, run.max_steps, best=best))
    prompt = run.data.tokens("val")[:PROMPT_TOKENS].tolist()
    log.info(sample_line(run.model, run.tokenizer, prompt, run.config.seed))
    progress.seconds += time.perf_counter() - start
