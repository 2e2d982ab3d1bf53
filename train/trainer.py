"""Begin a run: settings, checks, the plan, then its first step."""

import logging
import platform
import secrets
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common import checkpoint, run_dir
from common.dataset import SPLITS, DataFolder, open_data
from common.device import Device, choose_device
from common.errors import ConfigError, DataError
from common.files import write_json
from common.models.config import ModelConfig
from common.run_dir import CONFIG_NAME, FORMAT_VERSION
from common.settings import from_dict
from train.config import LENGTHS, TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.loop import Progress
from train.monitoring.loggers import import_package, make_logger
from train.presets import PRESETS, preset_for
from train.session import assemble, drive, held, initial_model, memory_said, shard_if_asked
from train.setup.autotune import (
    measure_speed,
    ngram_dropout,
    summary_lines,
    with_batch_size,
    with_intervals,
    with_max_steps,
)
from train.signals import StopRequest

log = logging.getLogger(__name__)

# What a network's weights do not depend on.
FREE = {"dropout", "ngram_dropout", "attention"}


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
    """Train a new network, or one that begins with the weights of the checkpoint ``init_from``.

    Return the signal that stopped it early, or None.
    """
    device = choose_device(device_name)
    data = open_data(data_path)
    tokenizer = data.tokenizer()
    if preset == "auto":
        preset = preset_for(device.torch_device.type)
    if init_from is None:
        chosen = PRESETS[preset].model_for(tokenizer.kind) | model_options
        shape = ModelConfig(**chosen, vocab_size=tokenizer.vocab_size)
    else:
        shape = _shape_of(init_from, data, model_options)
    config = _train_config(preset, train_options)
    _check_sizes(data, shape.block_size)
    import_package(config.tracker)  # missing, it is to be said before a run is made

    with memory_said("making and measuring the network"):
        model = shard_if_asked(
            initial_model(shape, config, device, init_from), config, device, group
        )
        config = with_max_steps(with_batch_size(config, model, device, group), model, data)
        speed = measure_speed(config, model, data, device, group)
    config = with_intervals(config, speed)
    if init_from is None and "ngram_dropout" not in model_options:
        shape = replace(shape, ngram_dropout=ngram_dropout(config, shape, data))
        model.config = shape
    stop.wait_for_steps()
    settings = _settings(preset, shape, config, data, device, init_from)
    folder = Path(group.broadcast_from_rank0(lambda: _new_folder(runs_dir, name, settings)))
    log.info("run         %s, preset %s", folder, preset)
    if init_from is not None:
        log.info("weights     of %s", init_from)
    for line in summary_lines(config, model, data, device, speed, group):
        log.info(line)
    kind = config.tracker if group.is_rank0 else "none"
    with held(folder, group):
        tracker = make_logger(kind, folder, 0, settings)
        run = assemble(folder, model, data, tokenizer, config, device, tracker, group)
        return drive(run, Progress(eval_s=speed.eval_s), stop)


def _new_folder(runs_dir: Path, name: str, settings: dict[str, Any]) -> str:
    folder = run_dir.new_run(runs_dir, name)
    write_json(folder / CONFIG_NAME, settings)
    return str(folder)


def weights_of(runs_dir: Path, named: str) -> Path:
    """Return the checkpoint that ``RUN``, ``RUN:best`` or ``RUN:latest`` means; best by default.

    Raises: CheckpointError when there is no such run, or nothing sound in it.
    """
    name, _, pointer = named.partition(":")
    if pointer not in ("", "best", "latest"):
        raise ConfigError(f"--init-from {named}: after the colon comes best or latest.")
    run = run_dir.find_run(runs_dir, name)
    return checkpoint.newest_valid(run, "latest" if pointer == "latest" else "best")


def _settings(
    preset: str,
    shape: ModelConfig,
    config: TrainConfig,
    data: DataFolder,
    device: Device,
    init_from: Path | None,
) -> dict[str, Any]:
    """Return what config.json holds."""
    return {
        "format": FORMAT_VERSION,
        "preset": preset,
        "init_from": None if init_from is None else str(init_from.resolve()),
        "model": asdict(shape),
        "train": asdict(config),
        "data": {"path": str(data.path.resolve()), "sha256": data.sha256},
        "device": str(device),
        "tracker_id": secrets.token_hex(8),  # another run of this name is another there
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
    }


def _shape_of(saved: Path, data: DataFolder, options: dict[str, Any]) -> ModelConfig:
    """Return the shape of the network in ``saved``, with what may differ taken from ``options``.

    Raises: ConfigError, DataError when the weights do not fit what is asked for.
    """
    state = run_dir.read_json(saved / checkpoint.STATE_NAME)
    shape = from_dict(ModelConfig, state["model"], str(saved / checkpoint.STATE_NAME))
    manifest = run_dir.read_json(saved / checkpoint.MANIFEST_NAME)
    if manifest["files"][state["tokenizer"]["file"]]["sha256"] != data.vocabulary_sha256:
        raise DataError(
            f"{data.path}: its vocabulary is not the one of {saved}: the same ids stand for other "
            "text. Prepare it with that vocabulary: python -m prepare text SRC --tokenizer "
            f"{saved / state['tokenizer']['file']}"
        )
    free = FREE if shape.positions == "learned" else FREE | {"block_size"}
    for item in fields(ModelConfig):
        asked = options.get(item.name, getattr(shape, item.name))
        if item.name not in free and asked != getattr(shape, item.name):
            raise ConfigError(
                f"--{item.name.replace('_', '-')} is {asked}, but the weights of {saved} were "
                f"trained with {getattr(shape, item.name)}: leave it out, or leave out --init-from."
            )
    return replace(shape, **options)


def _train_config(preset: str, options: dict[str, Any]) -> TrainConfig:
    settings = PRESETS[preset].train
    if set(LENGTHS) & set(options):  # a length given takes the place of the preset's own
        settings = {name: value for name, value in settings.items() if name not in LENGTHS}
    settings = settings | options
    if all(settings.get(name) is None for name in LENGTHS):
        raise ConfigError("Say how long to train: --minutes, --max-steps, --tokens or --epochs.")
    return TrainConfig(**settings)


def _check_sizes(data: DataFolder, block_size: int) -> None:
    for split in SPLITS:
        n_tokens = data.n_tokens(split)
        if n_tokens < block_size + 1:
            if not n_tokens:
                raise DataError(
                    f"{data.path / split}.bin: is empty: no document was put there. Prepare the "
                    "text again with another --val-fraction, or other --val-files."
                )
            remedy = f"pass --block-size {n_tokens - 1} or less, or " if n_tokens > 1 else ""
            raise DataError(
                f"{data.path / split}.bin: holds {n_tokens:,} tokens, but --block-size "
                f"{block_size} needs {block_size + 1:,}: {remedy}prepare more text."
            )
