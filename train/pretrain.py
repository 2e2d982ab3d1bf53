"""Begin a run: settings, checks, measured speed, plan, folder, then training."""

import logging
import platform
import secrets
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from common import run_dir
from common.checkpoint import STATE_NAME, newest_valid
from common.dataset import DataFolder, open_data
from common.device import choose_device
from common.errors import ConfigError
from common.files import write_json
from common.models.config import ModelConfig
from common.settings import from_dict
from common.tokenizer import Tokenizer
from train.config import LENGTHS, TrainConfig, saved_settings
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.monitoring.loggers import import_package, make_logger
from train.monitoring.metrics import Progress
from train.optim.optimizers import make_optimizer
from train.presets import PRESETS, preset_for
from train.recovery import run_lock, train_with_rollback
from train.setup.autotune import autotune, summary_lines
from train.setup.memory import explain_out_of_memory
from train.signals import StopRequest
from train.trainer import Run, Trainer, initial_model, parallelize
from train.validation import check_shape, check_sizes, check_vocabulary

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
    device, data = choose_device(device_name), open_data(data_path)
    tokenizer = data.tokenizer()
    if preset == "auto":
        preset = preset_for(device.torch_device.type)
    config = train_config(preset, train_options)
    shape = model_config(preset, model_options, data, tokenizer, init_from)
    check_sizes(data, shape.block_size)
    import_package(config.tracker)  # missing, it is to be said before a run is made

    with explain_out_of_memory("making and measuring the network"):
        model = initial_model(shape, config, init_from).to(device.torch_device)
        model = parallelize(model, config, device, group)
        scale_dropout = init_from is None and "ngram_dropout" not in model_options
        plan, speed = autotune(
            config, model, data, device, group, scale_ngram_dropout=scale_dropout
        )
    stop.wait_for_steps()
    python = platform.python_version()
    settings = {
        "format": run_dir.FORMAT_VERSION,
        "preset": preset,
        "init_from": None if init_from is None else str(init_from.resolve()),
        "model": asdict(model.config),
        "train": saved_settings(config, plan),
        "data": {"path": str(data.path.resolve()), "sha256": data.sha256},
        "device": str(device),
        "tracker_id": secrets.token_hex(8),  # another run of this name is another there
        "versions": {"python": python, "torch": torch.__version__, "numpy": numpy.__version__},
    }
    folder = Path(group.broadcast_from_rank0(lambda: make_folder(runs_dir, name, settings)))
    log.info("run         %s, preset %s", folder, preset)
    if init_from is not None:
        log.info("weights     of %s", init_from)
    with run_lock(folder, group):
        trainer = Trainer(
            model, make_optimizer(model, config), data, config, device, group,
            batch_size=plan.batch_size, compiled=plan.compile == "on",
        )  # fmt: skip
        for line in summary_lines(trainer, plan, speed, data):
            log.info(line)
        logger = make_logger(config.tracker if group.is_rank0 else "none", folder, 0, settings)
        run = Run(folder, trainer, plan, data, tokenizer, logger)
        return train_with_rollback(run, Progress(eval_s=speed.eval_s), stop)


def model_config(
    preset: str,
    options: dict[str, Any],
    data: DataFolder,
    tokenizer: Tokenizer,
    init_from: Path | None,
) -> ModelConfig:
    """Return the network's settings: the preset's, or those of other weights, with ``options``.

    Raises: ConfigError, DataError when the weights do not fit the options or the data.
    """
    if init_from is None:
        chosen = PRESETS[preset].model_for(tokenizer.kind) | options
        return ModelConfig(**chosen, vocab_size=tokenizer.vocab_size)
    state = run_dir.read_json(init_from / STATE_NAME)
    check_vocabulary(data, init_from, state)
    shape = from_dict(ModelConfig, state["model"], str(init_from / STATE_NAME))
    check_shape(init_from, shape, options)
    return replace(shape, **options)


def train_config(preset: str, options: dict[str, Any]) -> TrainConfig:
    """Return a preset's settings with those of ``options`` in their place.

    Raises: ConfigError when no length is among them.
    """
    settings = PRESETS[preset].train
    if set(LENGTHS) & set(options):  # a length given takes the place of the preset's own
        settings = {name: value for name, value in settings.items() if name not in LENGTHS}
    settings = settings | options
    if all(settings.get(name) is None for name in LENGTHS):
        raise ConfigError("Say how long to train: --minutes, --max-steps, --tokens or --epochs.")
    return TrainConfig(**settings)


def make_folder(runs_dir: Path, name: str, settings: dict[str, Any]) -> str:
    """Make a run's folder, of another name where NAME is taken, with its config.json."""
    folder = run_dir.new_run(runs_dir, name)
    write_json(folder / run_dir.CONFIG_NAME, settings)
    return str(folder)


def weights_of(runs_dir: Path, named: str) -> Path:
    """Return the checkpoint that ``RUN``, ``RUN:best`` or ``RUN:latest`` means; best by default.

    Raises: CheckpointError when there is no such run, or nothing sound in it.
    """
    name, _, pointer = named.partition(":")
    if pointer not in ("", "best", "latest"):
        raise ConfigError(f"--init-from {named}: after the colon comes best or latest.")
    run = run_dir.find_run(runs_dir, name)
    return newest_valid(run, "latest" if pointer == "latest" else "best")
