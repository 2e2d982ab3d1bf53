"""The training loop: schedule, update, log, save, evaluate.

A checkpoint is written before the evaluation of the same step, so that a crash there loses
nothing; a run resumed from it evaluates again and goes on as if it had never stopped.
"""

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from common.dataset import Split
from common.run_dir import checkpoint_dir, write_pointer
from train.config import TrainPlan
from train.data import Batch, dropout_seed
from train.evaluate import (
    TRAIN_TOKENS,
    evaluate,
    rows_at_once,
    sample_lines,
    scores_record,
    token_lengths,
)  # fmt: skip
from train.monitoring import metrics
from train.monitoring.early_stopping import Losses, overfitting_line, read_history, reason_to_end
from train.monitoring.metrics import Progress, Update
from train.optim.gradients import clip_grad_norm_
from train.optim.lr_schedule import learning_rate_at, position
from train.setup.memory import explain_out_of_memory
from train.setup.replan import Replanner
from train.signals import StopRequest
from train.trainer import DivergedError, Run, Trainer

log = logging.getLogger(__name__)


def train(run: Run, progress: Progress, stop: StopRequest) -> int | None:
    """Train from where ``progress`` is to the end; return the signal that ended it early, if any.

    Raises: DivergedError when only an earlier checkpoint can help; ``progress`` is how far it came.
    """
    trainer, config, clock = run.trainer, run.trainer.config, stop.clock

    def stop_signal() -> int | None:
        # of any rank: all have to stop after the same step
        return int(trainer.group.all_reduce_max(stop.requested() or 0)) or None

    first_step = progress.step
    logged = trainer.group.broadcast_from_rank0(lambda: read_history(run.folder))
    history = [Losses(*each) for each in logged]
    mark = replace(progress)  # where the speed is measured from
    trainer.warmup(first_step, backward)
    progress.seconds += clock.lap(0.0)
    replanner = Replanner(run.plan, run.limit, first_step, trainer.group)
    while True:
        step = progress.step
        plan = replanner.plan_at(progress)  # of --minutes it changes where the machine's speed does
        # with no step made there is nothing to save: the first one is made yet
        signal = stop_signal() if step > 0 else None
        eval_due, log_due = plan.is_eval_step(step), step % config.log_interval == 0
        if step > first_step:
            if log_due:
                log_progress(run, plan, progress, mark)
            if log_due or step == first_step + 1:  # the first update warms up
                mark = replace(progress)
            if (log_due or progress.n_bad or "max_steps" in progress.record) and not eval_due:
                run.write_metrics(progress.record)
            # weights after a bad update are doubtful: saved only where something depends on it
            if eval_due or signal or (step % plan.save_interval == 0 and not progress.n_bad):
                run.save(progress)
                progress.add_save(clock.lap(progress.save_s))
        if eval_due and not signal:
            ended = evaluate_run(run, plan, progress, history)
            progress.add_evaluation(clock.lap(progress.eval_s))
            if ended:
                return None
            signal = stop_signal()  # this step is saved already
        if signal:
            return signal

        at = position(step, run.plan.max_steps, progress.decisions)
        lr = progress.lr_scale * learning_rate_at(at, run.plan.max_steps, config)
        progress.seconds += clock.lap(0.0)  # what was written
        result = update(trainer, step, lr)
        dt_s = clock.lap(progress.step_s)
        trainer.note_time(dt_s)
        progress.add_update(result, lr, trainer.tokens_per_step, dt_s)
        if not result.finite:
            what = f"the loss is {result.loss}, the norm of the gradient {result.grad_norm}"
            log.warning("step %s: %s: update skipped, weights stay", f"{step + 1:,}", what)
            if progress.n_bad >= config.max_bad_steps:
                raise DivergedError(f"{what}, as after {progress.n_bad} updates in a row")


def update(trainer: Trainer, step: int, lr: float) -> Update:
    """Make update ``step``, counted from 0, at learning rate ``lr``; skip it if it is not finite.

    All that is random in it is a function of (seed, step, rank).
    """
    trainer.optimizer.set_lr(lr)
    batch, seed = trainer.batch(step), dropout_seed(trainer.config.seed, step, trainer.group.rank)
    result = Update(*trainer.retry(lambda: forward_backward(trainer, batch, seed)))
    if result.finite:
        with explain_out_of_memory("the optimizer"):  # some weights may have changed: no retry
            trainer.optimizer.step()
    return result


def forward_backward(trainer: Trainer, batch: Batch, seed: int) -> tuple[float, float]:
    """Leave the clipped gradient of a batch in the parameters.

    Return the loss and the norm of the gradient before clipping.
    """
    torch.manual_seed(seed)
    trainer.model.zero_grad()
    loss = torch.zeros((), device=batch.rows.device)
    micro_batches = torch.split(batch.rows, trainer.batch_size)
    for micro_step, rows in enumerate(micro_batches, 1):
        is_last = micro_step == len(micro_batches)
        with trainer.group.gradient_sync(trainer.model, enabled=is_last):
            loss += backward(trainer, rows, batch.n_learned)
    # gradients are means over the processes too
    trainer.group.all_reduce_(loss).div_(trainer.group.world_size)
    max_norm, scale = trainer.config.grad_clip, trainer.grad_scaler.scale
    norm = clip_grad_norm_(trainer.model, max_norm, scale, is_sharded=trainer.is_sharded)
    # both at once: the only time in a step that the CPU waits for a GPU
    loss_value, norm_value = torch.stack((loss, norm)).tolist()
    return loss_value, norm_value


def backward(trainer: Trainer, rows: Tensor, n_learned: float) -> Tensor:
    """Add the gradient of a micro-batch; return its share of the mean over ``n_learned``."""
    with trainer.device.autocast():
        loss, sums = trainer.source.objective(trainer.model, trainer.forward, rows)
    loss = loss * (sums["n"] / n_learned)
    (loss * trainer.grad_scaler.scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def log_progress(run: Run, plan: TrainPlan, progress: Progress, mark: Progress) -> None:
    """Log the progress line: speed, and at that speed the ETA, measured since ``mark``."""
    trainer = run.trainer
    speed = (progress.n_tokens - mark.n_tokens) / (progress.update_s - mark.update_s)
    progress.record["tokens_per_second"] = round(speed, 1)
    n = trainer.group.world_size
    if (share := metrics.mfu(trainer.model, trainer.device, speed, world_size=n)) is not None:
        progress.record["mfu"] = round(share, 4)
    costs = progress.costs(trainer.tokens_per_step / speed)
    eta_s = plan.remaining_s(progress.step, *costs)
    log.info(metrics.progress_line(progress.record, plan.max_steps, eta_s))


def evaluate_run(run: Run, plan: TrainPlan, progress: Progress, history: list[Losses]) -> bool:
    """Score both splits, show and record it; tell whether there is a reason to end."""
    trainer, config, step = run.trainer, run.trainer.config, progress.step
    run.data.check_files()
    model, device, lengths = trainer.model, trainer.device, token_lengths(run.tokenizer)
    n_tokens: dict[Split, int] = {"train": TRAIN_TOKENS, "val": config.eval_tokens}
    n_rows = rows_at_once(device, trainer.block_size)
    batches = [trainer.source.eval_batches(*each, n_rows) for each in n_tokens.items()]
    objective, group = trainer.source.objective, trainer.group
    train, val = (evaluate(model, each, lengths, device, group, objective) for each in batches)
    if not (math.isfinite(train.loss) and math.isfinite(val.loss)):
        raise DivergedError(f"the loss is {train.loss} on train and {val.loss} on val")
    history.append(Losses(train.loss, val.loss))
    best = progress.best_val_loss is None or val.loss < progress.best_val_loss
    if best:
        progress.best_val_loss = val.loss
        best_now = checkpoint_dir(run.folder, step)
        trainer.group.broadcast_from_rank0(lambda: write_pointer(run.folder, "best", best_now))
    record = progress.record | scores_record(train, val)
    ended = reason_to_end(step, plan.max_steps, history, config)
    run.write_metrics(record | ({"ended": ended} if ended else {}))
    log.info(metrics.evaluation_line(record, plan.max_steps, best=best))
    if (warning := overfitting_line(history)) is not None:
        log.warning(warning)
    if not trainer.is_sharded:  # for this rank 0 would need all of the network
        trainer.group.broadcast_from_rank0(
            lambda: log.info(sample_lines(model, run.tokenizer, run.data, config.seed))
        )
    if ended and step < plan.max_steps:
        log.info("ended after step %s: %s", f"{step:,}", ended)
    return ended is not None
