"""Begin a run, or go on with one: settings, checks, plan, folder, then training."""

import logging
import platform
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from common import run_dir
from common.checkpoint import MODEL_NAME, load_checkpoint, newest_valid
from common.dataset import DataFolder, open_data
from common.device import Device, choose_device
from common.errors import ConfigError
from common.files import sha256_of, write_json
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.settings import from_dict
from common.tokenizer import Tokenizer
from train.batches.sources import Source, make_source
from train.config import (
    FREE,
    FREE_UNLESS_LEARNED,
    TimeLimit,
    load_limit,
    load_settings,
    new_limit,
    saved_settings,
)
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.finetune import base_data, location, source_of
from train.monitoring.loggers import import_package, make_logger
from train.monitoring.metrics import Progress
from train.optim.lora import add_lora
from train.optim.optimizers import make_optimizer
from train.preference import keep_reference, reference_for
from train.presets import PRESETS
from train.recovery import restore, run_lock, train_with_rollback, unfinished_run
from train.setup.auto import auto_preset, larger_with_time
from train.setup.autotune import autotune, summary_lines
from train.setup.checks import check_settings, check_sizes, check_unchanged, check_vocabulary
from train.setup.memory import explain_out_of_memory
from train.setup.network import initial_model, parallelize
from train.signals import StopRequest
from train.trainer import Run, Trainer

log = logging.getLogger(__name__)


def new_run(
    data_path: Path,
    runs_dir: Path,
    name: str,
    preset: str,
    device_name: str,
    stop: StopRequest,
    *,
    model_options: dict[str, Any],
    train_options: dict[str, Any],
    init_from: Path | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int | None:
    """Train a network from new weights or a checkpoint's; return the signal that stopped it."""
    device = choose_device(device_name, train_options.get("dtype", "auto"))
    data = open_data(data_path)
    tokenizer = data.tokenizer()
    if is_auto := preset == "auto":
        preset = auto_preset(device.torch_device.type, tokenizer.vocab_size)
    config, given = PRESETS[preset].train_config(train_options), {*model_options, *train_options}
    if init_from is not None:
        shape = shape_of(init_from, data, model_options)
    else:
        shape = new_shape(preset, data, tokenizer, model_options)
        if is_auto:
            shape = larger_with_time(shape, model_options, config, data, device, group)
    check_sizes(data, shape.block_size)
    base = base_data(init_from, shape.block_size) if config.mix and init_from else None
    reference = reference_for(data, config, shape, init_from and init_from / MODEL_NAME, device)
    source = make_source(data, config, shape.block_size, group, base=base, reference=reference)
    import_package(config.tracker)  # missing, it is to be said before a run is made

    with explain_out_of_memory("making and measuring the network"):
        model = initial_model(shape, config, init_from, data.tokens("train"))
        model = parallelize(model.to(device.torch_device), config, device, group)
        config, plan, speed = autotune(
            config, model, source, device, group, start_s=stop.clock.start,
            by_epochs=set() if init_from else PRESETS[preset].by_epochs - given,
        )  # fmt: skip
    stop.wait_for_steps()
    settings = {
        "format": run_dir.RUN_VERSION,
        "preset": preset,
        "init_from": None if init_from is None else str(init_from.resolve()),
        "model": asdict(model.config),
        "train": saved_settings(config, plan),
        "time_limit": new_limit(config),
        **environment(data, base, device, init_from if reference else None),
    }
    folder = Path(group.broadcast_from_rank0(lambda: str(run_dir.new_run(runs_dir, name))))
    group.broadcast_from_rank0(lambda: write_json(folder / run_dir.CONFIG_NAME, settings))
    log.info("run         %s, preset %s", folder, preset)
    if init_from is not None:
        log.info("weights     of %s", init_from)
        group.broadcast_from_rank0(lambda: keep_reference(reference, init_from, folder))
    with run_lock(folder, group):
        run = make_run(folder, settings, model, source, data, tokenizer, device, group)
        log.info("\n".join(summary_lines(run.trainer, plan, speed, data)))
        progress = Progress(eval_s=speed.eval_s, save_s=speed.save_s, timed_step_s=speed.step_s)
        return train_with_rollback(run, progress, stop)


def environment(
    data: DataFolder, base: DataFolder | None, device: Device, reference: Path | None
) -> dict[str, Any]:
    """Return the part of config.json that no setting is in."""
    python = platform.python_version()
    return {
        "data": location(data),
        **({"reference_sha256": sha256_of(reference / MODEL_NAME)} if reference else {}),
        **({"base_data": location(base)} if base else {}),
        "vocabulary_sha256": data.vocabulary_sha256,
        "device": str(device),
        "tracker_id": secrets.token_hex(8),  # another run of this name is another there
        "versions": {"python": python, "torch": torch.__version__, "numpy": numpy.__version__},
    }


def new_shape(
    preset: str, data: DataFolder, tokenizer: Tokenizer, options: dict[str, Any]
) -> ModelConfig:
    """Return the shape that a preset's network has on ``data``, with ``options`` in its place."""
    chosen = PRESETS[preset].model_for(tokenizer.kind, data.n_tokens("train"))
    return ModelConfig(**chosen | options, vocab_size=tokenizer.vocab_size)


def shape_of(init_from: Path, data: DataFolder, options: dict[str, Any]) -> ModelConfig:
    """Return the shape of a checkpoint's network, with ``options``; raise where they do not fit."""
    state = run_dir.read_json(init_from / run_dir.STATE_NAME)
    check_vocabulary(data, init_from, state)
    shape = from_dict(ModelConfig, state["model"], str(init_from / run_dir.STATE_NAME))
    free = FREE if shape.positions == "learned" else FREE_UNLESS_LEARNED
    for name, given in options.items():
        trained = getattr(shape, name)
        if name not in free and given != trained:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {given}, but the weights of {init_from} were "
                f"trained with {trained}: leave it out, or train a network of its own."
            )
    return replace(shape, **options)


def make_run(
    folder: Path,
    settings: dict[str, Any],
    model: GPT,
    source: Source,
    data: DataFolder,
    tokenizer: Tokenizer,
    device: Device,
    group: ProcessGroup,
    first_step: int = 1,
) -> Run:
    """Return the run whose config.json holds ``settings``; ``first_step`` is logged first."""
    config, plan = load_settings(settings["train"], str(folder / run_dir.CONFIG_NAME))
    trainer = Trainer(
        model, make_optimizer(model, config), source, config, device, group,
        batch_size=plan.batch_size, compiled=plan.compile == "on",
    )  # fmt: skip
    kind = config.tracker if group.is_rank0 else "none"
    logger = make_logger(kind, folder, first_step, settings)
    return Run(folder, trainer, plan, data, tokenizer, logger, load_limit(settings))


def weights_of(runs_dir: Path, named: str) -> Path:
    """Return the checkpoint that ``RUN``, ``RUN:best`` or ``RUN:latest`` means; best by default."""
    name, _, pointer = named.partition(":")
    if pointer not in ("", "best", "latest"):
        raise ConfigError(f"--init-from {named}: after the colon comes best or latest.")
    run = run_dir.find_run(runs_dir, name)
    return newest_valid(run, "latest" if pointer == "latest" else "best")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be other than in the run so far."""

    max_steps: int | None = None
    minutes: float | None = None  # more
    data_path: Path | None = None
    allow_data_change: bool = False
    shard: bool | None = None
    batch_size: int | None = None


def resume_run(
    folder: Path,
    device_name: str,
    stop: StopRequest,
    changes: Changes | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int | None:
    """Go on with the run in ``folder``; return the signal that stopped it early, or None."""
    with run_lock(folder, group):
        resumed = load_run(folder, device_name, stop, changes or Changes(), group)
        return None if resumed is None else train_with_rollback(*resumed, stop)


def load_run(
    folder: Path, device_name: str, stop: StopRequest, changes: Changes, group: ProcessGroup
) -> tuple[Run, Progress] | None:
    """Return a run as its newest checkpoint has it, with the changes; None if it is finished."""
    config_path = folder / run_dir.CONFIG_NAME
    settings = group.broadcast_from_rank0(lambda: run_dir.read_json(config_path))
    config, plan = load_settings(settings["train"], str(config_path))
    limit = load_limit(settings)
    saved = Path(group.broadcast_from_rank0(lambda: str(newest_valid(folder, "latest"))))
    device = choose_device(device_name, settings["train"].get("dtype"))  # None: of before --dtype
    loaded = load_checkpoint(saved, device.torch_device)
    state, step = loaded.state, int(loaded.state["step"])
    check_settings(settings, saved, state, changes.data_path)
    progress = Progress(**state["progress"])
    planned = plan.after(limit, progress.decisions).max_steps
    max_steps = new_max_steps(planned, progress, changes)
    ended = group.broadcast_from_rank0(lambda: run_dir.stop_reason(folder, step))
    if max_steps == planned and ended is not None:
        log.info("%s is finished: %s.", folder, ended)
        return None
    data = open_data(changes.data_path or Path(settings["data"]["path"]))
    check_vocabulary(data, saved, state)
    check_sizes(data, loaded.model.config.block_size)
    check_unchanged(data, saved, state, allow_change=changes.allow_data_change)

    stop.wait_for_steps()
    if changes != Changes():
        before = {"step": step, "max_steps": plan.max_steps, "data": settings.get("data")}
        if changes.shard is not None:
            config = replace(config, shard=changes.shard)
        if changes.batch_size is not None:
            plan = replace(plan, batch_size=changes.batch_size)
            state["stepper"]["batch_size"] = changes.batch_size
        if changes.minutes is not None:
            seconds, auto = 60 * changes.minutes, limit.auto if limit else []
            limit = TimeLimit(seconds=seconds, from_step=step, from_s=progress.seconds, auto=auto)
        elif changes.max_steps is not None:
            limit = None
        if changes.minutes is not None or changes.max_steps is not None:
            plan = replace(plan, max_steps=max_steps)
        settings |= {
            "changes": [*settings.get("changes", []), before],
            "train": saved_settings(config, plan),
            "time_limit": limit and asdict(limit),
            "data": location(data),
        }
        group.broadcast_from_rank0(lambda: write_json(config_path, settings))
    add_lora(loaded.model, config.lora, config.lora_alpha, config.seed)
    model = parallelize(loaded.model, config, device, group)
    first = plan.after(limit, progress.decisions).first_logged_step(step)
    source = source_of(folder, settings, data, config, model.config, device, group)
    run = make_run(folder, settings, model, source, data, loaded.tokenizer, device, group, first)
    progress = restore(run, saved, state)
    log.info("resuming    %s after step %s", saved, f"{step:,}")
    return run, progress


def new_max_steps(planned: int, progress: Progress, changes: Changes) -> int:
    """Return the number of steps, ``planned`` or changed; raise where so many are made already."""
    n_steps = changes.max_steps
    if changes.minutes is not None:
        if n_steps is not None:
            raise ConfigError("--max-steps and --minutes are both given: one decides the length.")
        # at the speed so far; setup/replan.py mends it
        n_steps = progress.step + max(1, int(60 * changes.minutes / progress.step_s))
    if n_steps is None or n_steps == planned:
        return planned
    if n_steps <= progress.step:
        raise ConfigError(
            f"--max-steps {n_steps:,}: the run has made {progress.step:,} steps already: pass more."
        )
    log.info(
        "length      %s steps in place of %s: from here on the learning rate is that of a "
        "schedule over all of them", f"{n_steps:,}", f"{planned:,}",
    )  # fmt: skip
    return n_steps


def unfinished_on(runs_dir: Path, name: str, data: Path, group: ProcessGroup) -> Path | None:
    """Return the run that --resume goes on with, and say so; None where there is none."""
    found = group.broadcast_from_rank0(lambda: unfinished_run(runs_dir, name, data))
    if found is None:
        return None
    log.info("%s is unfinished: it goes on, as it was set. --no-resume starts a new run.", found)
    return Path(found)
