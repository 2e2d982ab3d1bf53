"""Going on: with a run that is unfinished, and from the last good checkpoint of a diverged one.

That run goes on with half the learning rate: a few times, then it stops and says why.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common import run_dir
from common.checkpoint import MODEL_NAME, OPTIMIZER_NAME, newest_valid
from common.dataset import open_data
from common.errors import UserError
from train.config import own_decisions
from train.distributed.comm import ProcessGroup
from train.distributed.fsdp import load_sharded, shard_like, to_local
from train.loop import train
from train.monitoring.metrics import Progress, cut_metrics
from train.setup.memory import explain_out_of_memory
from train.setup.network import initial_model
from train.signals import StopRequest
from train.trainer import DivergedError, Run

log = logging.getLogger(__name__)

# The third leaves an eighth of the learning rate: what needs less was wrong by more than that.
MAX_ROLLBACKS = 3


def train_with_rollback(run: Run, progress: Progress, stop: StopRequest) -> int | None:
    """Train to the end; return the signal that ended it early, or None."""
    explained = explain_out_of_memory("evaluation or saving", " and go on: python -m train resume")
    with explained, closing(run.trainer.batches):
        while True:
            try:
                stopped_by = train(run, progress, stop)
                break
            except DivergedError as error:
                progress = roll_back(run, progress, str(error))
    name = run.folder.name
    if run.folder.parent != Path("runs"):  # the commands' own default
        name += f" --runs-dir {run.folder.parent}"
    if stopped_by is None:
        best = f"{run_dir.read_pointer(run.folder, 'best')}: val loss {progress.best_val_loss:.4f}"
        log.info("%s, the best of this run. Talk to it: python -m sample chat %s", best, name)
    else:
        done = f"Stopped after step {progress.step:,}, everything saved."
        log.info("%s Go on: python -m train resume %s", done, name)
    return stopped_by


def roll_back(run: Run, progress: Progress, reason: str) -> Progress:
    """Put a run back to its last good checkpoint, or its beginning, with half the learning rate."""
    trainer, at = run.trainer, f"step {progress.step:,}: {reason}"
    if progress.n_returns == MAX_ROLLBACKS:
        raise UserError(
            f"{at}: the run has diverged, also after {MAX_ROLLBACKS} returns to an earlier "
            f"checkpoint, each with half the learning rate. Train anew with a lower "
            f"--learning-rate than {progress.lr_scale * trainer.config.learning_rate:g}."
        )

    def good_checkpoint() -> str | None:
        saved = None
        if run_dir.checkpoints(run.folder, last_step=progress.good_step):
            saved = newest_valid(run.folder, "latest", last_step=progress.good_step)
        run_dir.rollback_to(run.folder, saved)
        return None if saved is None else str(saved)

    saved = trainer.group.broadcast_from_rank0(good_checkpoint)
    lr_scale = progress.lr_scale / 2
    log.warning("%s: back to %s, with the learning rate times %g", at, saved or "step 0", lr_scale)
    if saved is None:
        settings = run_dir.read_json(run.folder / run_dir.CONFIG_NAME)
        init_from = Path(settings["init_from"]) if settings.get("init_from") else None
        first = initial_model(trainer.model.config, trainer.config, init_from)
        weights = dict(first.named_parameters())
        trainer.optimizer.load_state_dict({})
        trainer.group.broadcast_from_rank0(lambda: cut_metrics(run.folder, 0))
    else:
        weights = load_file(Path(saved) / MODEL_NAME)
    with torch.no_grad():  # in place: there is no room for a second network
        for name, parameter in trainer.model.named_parameters():
            if name in weights:  # adapters are with the optimizer
                to_local(parameter).copy_(to_local(shard_like(weights[name], parameter)))
    restored = Progress()
    if saved is not None:
        restored = restore(run, Path(saved), run_dir.read_json(Path(saved) / run_dir.STATE_NAME))
    if run_dir.read_pointer(run.folder, "best") is None:  # it went with the others
        restored.best_val_loss = None
    return replace(
        restored,
        seconds=progress.seconds,
        update_s=progress.update_s,
        lr_scale=lr_scale,
        n_returns=progress.n_returns + 1,
    )


def restore(run: Run, saved: Path, state: dict[str, Any]) -> Progress:
    """Put back all but the weights of the checkpoint ``saved``; return how far it was."""
    trainer, model = run.trainer, run.trainer.model
    if (saved / run_dir.SHARDS_NAME).is_dir():
        tensors = load_sharded(saved / run_dir.SHARDS_NAME, dict(model.named_parameters()))
    else:
        tensors = load_file(saved / OPTIMIZER_NAME)
    trainer.optimizer.load_state_dict(tensors)
    trainer.load_state_dict(state["stepper"])
    progress = Progress(**state["progress"])
    progress.decisions = own_decisions(run.limit, progress.decisions)
    newest = run.plan.after(run.limit, progress.decisions)
    first_step = newest.first_logged_step(progress.step)
    trainer.group.broadcast_from_rank0(lambda: cut_metrics(run.folder, first_step))
    return progress


@contextmanager
def run_lock(folder: Path, group: ProcessGroup) -> Iterator[None]:
    """Keep other trainings away from a run."""
    descriptor = group.broadcast_from_rank0(lambda: run_dir.lock_run(folder))
    try:
        yield
    finally:
        if group.is_rank0:
            os.close(descriptor)


def unfinished_run(runs_dir: Path, name: str, data_path: Path) -> Path | None:
    """Return the newest run called NAME, or NAME-2 to NAME-99, if it can go on with this data."""
    # more digits are rather a person's own: exp-2024 is no second exp
    pattern = re.compile(re.escape(name) + r"(-[2-9]|-[1-9]\d)?")
    named = [run for run in run_dir.list_runs(runs_dir) if pattern.fullmatch(run.name)]
    newest = run_dir.last_saved(named)
    if newest is None:
        return None
    trained_on = run_dir.read_json(newest / run_dir.CONFIG_NAME).get("data", {}).get("sha256")
    is_same = trained_on == open_data(data_path).sha256
    return newest if is_same and run_dir.stop_reason(newest) is None else None
