"""A run in memory: assembled, taken from a checkpoint, and driven to its end.

Where weights have become useless the run goes back to the last checkpoint known to be good, with
half the learning rate: a few times, then it stops and says why.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from common import checkpoint, run_dir
from common.checkpoint import OPTIMIZER_NAME, Checkpoint
from common.dataset import DataFolder
from common.device import Device, is_out_of_memory
from common.errors import ConfigError, UserError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import CONFIG_NAME, SHARDS_NAME
from common.settings import from_dict
from common.tokenizer import Tokenizer
from train.config import TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import apply_fsdp, load_sharded
from train.loop import DivergedError, Progress, Run, first_said, train
from train.monitoring.loggers import MetricsLogger
from train.monitoring.metrics import cut_metrics
from train.optim.group import load_optimizer_state_dict, make_optimizer
from train.signals import StopRequest
from train.step import Stepper

log = logging.getLogger(__name__)

# The third leaves an eighth of the learning rate: what needs less was wrong by more than that.
MOST_RETURNS = 3


def initial_model(
    shape: ModelConfig, config: TrainConfig, device: Device, weights_from: Path | None
) -> GPT:
    """Return the network before its first step: drawn from the seed, or another run's."""
    torch.manual_seed(config.seed)
    model = GPT(shape, zero_init=config.zero_init)
    if weights_from is not None:
        weights = load_file(weights_from / checkpoint.MODEL_NAME)
        model.load_state_dict(weights)
    return model.to(device.torch_device).train()


def assemble(
    folder: Path,
    model: GPT,
    data: DataFolder,
    tokenizer: Tokenizer,
    config: TrainConfig,
    device: Device,
    tracker: MetricsLogger,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """Return a run at its beginning; the config says how many steps it has."""
    assert config.max_steps is not None
    optimizer = make_optimizer(model, config)
    stepper = Stepper(model, optimizer, data, config, device, group)
    return Run(
        folder, model, optimizer, data, tokenizer, config, device, config.max_steps, stepper,
        tracker, group,
    )  # fmt: skip


def shard_if_asked(model: GPT, config: TrainConfig, device: Device, group: ProcessGroup) -> GPT:
    """Return ``model``, of which each process keeps only its shard where --shard asks for it."""
    if config.shard and group.is_distributed:
        return apply_fsdp(model, device)
    if config.shard:
        log.warning("--shard is for several processes: torchrun starts them. This one keeps all.")
    return model


def restore(
    saved: Path, loaded: Checkpoint, data: DataFolder, config: TrainConfig, device: Device,
    tracker: MetricsLogger, group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Run, Progress]:  # fmt: skip
    """Return a run as it was when it wrote the checkpoint ``saved``, by however many processes."""
    model = shard_if_asked(loaded.model.train(), config, device, group)
    run = assemble(saved.parent, model, data, loaded.tokenizer, config, device, tracker, group)
    if (saved / SHARDS_NAME).is_dir():
        tensors = load_sharded(saved / SHARDS_NAME, dict(model.named_parameters()))
    else:
        tensors = load_file(saved / OPTIMIZER_NAME)
    load_optimizer_state_dict(run.optimizer, model, tensors)
    if "stepper" in loaded.state:
        run.stepper.load_state(loaded.state["stepper"])
    progress = Progress(**loaded.state["progress"])
    group.broadcast_from_rank0(lambda: cut_metrics(run.folder, first_said(progress.step, config)))
    return run, progress


def drive(run: Run, progress: Progress, stop: StopRequest) -> int | None:
    """Train to the end; return the signal that ended it early, or None.

    Raises: UserError when not even smaller learning rates help.
    """
    while True:
        try:
            with memory_said("evaluation or saving", " and go on: python -m train resume"):
                stopped_by = train(run, progress, stop)
            break
        except DivergedError as error:
            trouble = str(error)  # the error itself would hold on to the old network
        finally:
            run.stepper.close()
        run, progress = _back_to_good(run, progress, trouble)
    _say_how_it_ended(run, progress, stopped_by)
    return stopped_by


def _back_to_good(run: Run, progress: Progress, trouble: str) -> tuple[Run, Progress]:
    """Return the run at the last good checkpoint, or at its beginning, with half the rate."""
    where = f"step {progress.step:,}: {trouble}"
    if progress.n_returns == MOST_RETURNS:
        raise UserError(
            f"{where}: the run has diverged, also after {MOST_RETURNS} returns to an earlier "
            f"checkpoint, each with half the learning rate. Train anew with a lower "
            f"--learning-rate than {progress.lr_scale * run.config.learning_rate:g}."
        )
    saved = run.group.broadcast_from_rank0(lambda: _step_back(run.folder, progress.good_step))
    lr_scale = progress.lr_scale / 2
    log.warning(
        "%s: back to %s, with the learning rate times %g", where, saved or "step 0", lr_scale
    )
    if saved is not None:
        loaded = checkpoint.load_checkpoint(Path(saved), run.device.torch_device)
        back, then = restore(
            Path(saved), loaded, run.data, run.config, run.device, run.tracker, run.group
        )
    else:
        back, then = _begin_again(run), Progress()
    if run_dir.read_pointer(run.folder, "best") is None:  # it went with the others
        then.best_val_loss = None
    return back, replace(
        then,
        seconds=progress.seconds,
        update_s=progress.update_s,
        lr_scale=lr_scale,
        n_returns=progress.n_returns + 1,
    )


def _step_back(folder: Path, good_step: int) -> str | None:
    saved = None
    if run_dir.checkpoints(folder, last_step=good_step):
        saved = checkpoint.newest_valid(folder, "latest", last_step=good_step)
    run_dir.rollback_to(folder, saved)
    return None if saved is None else str(saved)


def _begin_again(run: Run) -> Run:
    settings = run_dir.read_json(run.folder / CONFIG_NAME)
    shape = from_dict(ModelConfig, settings["model"], str(run.folder / CONFIG_NAME))
    weights_from = settings.get("init_from")
    model = initial_model(
        shape, run.config, run.device, Path(weights_from) if weights_from else None
    )
    shard_if_asked(model, run.config, run.device, run.group)
    run.group.broadcast_from_rank0(lambda: cut_metrics(run.folder, 0))
    return assemble(
        run.folder, model, run.data, run.tokenizer, run.config, run.device, run.tracker, run.group
    )


@contextmanager
def held(folder: Path, group: ProcessGroup) -> Iterator[None]:
    """Keep other trainings away from a run."""
    descriptor = group.broadcast_from_rank0(lambda: run_dir.lock_run(folder))
    try:
        yield
    finally:
        if group.is_rank0:
            os.close(descriptor)


@contextmanager
def memory_said(where: str, remedy: str = "") -> Iterator[None]:
    """Say what to do where memory ran out, but in updates, which mend that themselves."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"out of memory in {where}. Free memory that others hold{remedy}. Or train a new run "
            "with a shorter --block-size, fewer --n-layer or --n-embd, or a smaller --preset."
        ) from error


def _say_how_it_ended(run: Run, progress: Progress, stopped_by: int | None) -> None:
    name = run.folder.name
    if run.folder.parent != Path("runs"):  # the commands' own default
        name += f" --runs-dir {run.folder.parent}"
    if stopped_by is not None:
        log.info(
            "Stopped after step %s, everything saved. Go on: python -m train resume %s",
            f"{progress.step:,}",
            name,
        )
        return
    assert progress.best_val_loss is not None
    log.info(
        "%s: val loss %.4f, the best of this run. Talk to it: python -m sample chat %s",
        run_dir.read_pointer(run.folder, "best"),
        progress.best_val_loss,
        name,
    )
