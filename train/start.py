"""Begin a run, or go on with one: settings, checks, the plan, then the loop."""

import logging
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common import checkpoint
from common.checkpoint import CONFIG_NAME, FORMAT_VERSION, OPTIMIZER_NAME
from common.config import ModelConfig, from_dict
from common.device import choose_device
from common.errors import ConfigError, DataError
from common.files import write_json
from common.model import GPT
from common.tokenfile import SPLITS, DataFolder, open_data
from train.config import TrainConfig
from train.loop import Progress, Run, is_eval_step, train
from train.metrics import cut_metrics
from train.optimizer import load_optimizer_tensors, make_optimizer
from train.plan import fix_batch, fix_length, measure, plan_lines
from train.presets import PRESETS, preset_for

log = logging.getLogger(__name__)


def new_run(
    data_path: Path,
    runs_dir: Path,
    name: str,
    preset: str,
    device_name: str,
    *,
    model_options: dict[str, Any],
    train_options: dict[str, Any],
) -> int | None:
    """Train a new network; return the signal that stopped it early, or None."""
    device = choose_device(device_name)
    data = open_data(data_path)
    tokenizer = data.tokenizer()
    if preset == "auto":
        preset = preset_for(device.torch_device.type)
    model_settings = PRESETS[preset].model | model_options
    model_config = ModelConfig(**model_settings, vocab_size=tokenizer.vocab_size)
    config = _train_config(preset, train_options)
    _check_sizes(data, model_config.block_size)

    torch.manual_seed(config.seed)
    model = GPT(model_config).to(device.torch_device)
    config = fix_batch(config, model, device)
    with _memory_said(config):
        speed = measure(config, model, data, device)
    config = fix_length(config, speed)
    folder = checkpoint.new_run(runs_dir, name)
    write_json(
        folder / CONFIG_NAME,
        {
            "format": FORMAT_VERSION,
            "preset": preset,
            "model": asdict(model_config),
            "train": asdict(config),
            "data": {"path": str(data.path.resolve()), "sha256": data.sha256},
            "device": str(device),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": version("numpy"),
            },
        },
    )
    log.info("run         %s, preset %s", folder, preset)
    for line in plan_lines(config, model, data, device, speed):
        log.info(line)
    optimizer = make_optimizer(model, config)
    assert config.max_steps is not None
    run = Run(folder, model, optimizer, data, tokenizer, config, device, config.max_steps)
    return _train(run, Progress())


def _train_config(preset: str, options: dict[str, Any]) -> TrainConfig:
    settings = PRESETS[preset].train | options
    if "max_steps" in options and "minutes" not in options:
        settings.pop("minutes", None)
    if settings.get("minutes") is None and settings.get("max_steps") is None:
        raise ConfigError("Say how long to train: --minutes or --max-steps.")
    return TrainConfig(**settings)


def _check_sizes(data: DataFolder, block_size: int) -> None:
    for split in SPLITS:
        n_tokens = data.n_tokens(split)
        if n_tokens < block_size + 1:
            remedy = f"pass --block-size {n_tokens - 1} or less, or " if n_tokens > 1 else ""
            raise DataError(
                f"{data.path / split}.bin: holds {n_tokens:,} tokens, but --block-size "
                f"{block_size} needs {block_size + 1:,}: {remedy}prepare more text."
            )


def resume_run(folder: Path, device_name: str) -> int | None:
    """Go on with the run in ``folder``; return the signal that stopped it early, or None.

    Raises: UserError when it has no sound checkpoint, or its data is no longer the same.
    """
    settings = checkpoint.read_json(folder / CONFIG_NAME)
    config = from_dict(TrainConfig, settings["train"], str(folder / CONFIG_NAME))
    newest = checkpoint.newest_valid(folder, "latest")
    device = choose_device(device_name)
    loaded = checkpoint.load_checkpoint(newest, device.torch_device)
    data = open_data(Path(settings["data"]["path"]))
    _check_same_data(data, newest, loaded.state)

    model = loaded.model.train()
    optimizer = make_optimizer(model, config)
    load_optimizer_tensors(optimizer, model, load_file(newest / OPTIMIZER_NAME))
    progress = Progress(**loaded.state["progress"])
    assert config.max_steps is not None
    run = Run(folder, model, optimizer, data, loaded.tokenizer, config, device, config.max_steps)
    if progress.step == config.max_steps and is_finished(folder):
        log.info("%s is finished: %s steps.", folder, f"{config.max_steps:,}")
        return None
    log.info("resuming    %s after step %s", newest, f"{progress.step:,}")
    # an evaluation that is due at this very step is made again, and its line written again
    cut_metrics(folder, progress.step + (0 if is_eval_step(progress.step, run) else 1))
    return _train(run, progress)


def _check_same_data(data: DataFolder, newest: Path, state: dict[str, Any]) -> None:
    manifest = checkpoint.read_json(newest / checkpoint.MANIFEST_NAME)
    vocabulary = manifest["files"][state["tokenizer"]["file"]]["sha256"]
    if vocabulary != data.vocabulary_sha256:
        raise DataError(
            f"{data.path}: its vocabulary is not the one of {newest}: the same ids stand for other "
            "text. Prepare the data as it was, or train a new run."
        )
    if state["data_sha256"] != data.sha256:
        raise DataError(
            f"{data.path}: SHA-256 {data.sha256[:12]}, but {newest} was trained on "
            f"{state['data_sha256'][:12]}: the data changed since. Prepare it as it was, or train "
            "a new run."
        )


def is_finished(folder: Path) -> bool:
    """Tell whether a run was evaluated after its last step."""
    max_steps = checkpoint.read_json(folder / CONFIG_NAME)["train"]["max_steps"]
    return checkpoint.val_loss_at(folder, max_steps) is not None


def unfinished_run(runs_dir: Path, name: str, data_path: Path) -> Path | None:
    """Return the newest run called NAME or NAME-2 ... if it can go on with this data."""
    runs = [
        run
        for run in checkpoint.list_runs(runs_dir)
        if re.fullmatch(re.escape(name) + r"(-\d+)?", run.name)
    ]
    saved = [run for run in runs if checkpoint.pointed(run, "latest") is not None]
    if not saved:
        return None
    newest = max(saved, key=lambda run: (run / "latest").stat().st_mtime_ns)
    same_data = (
        checkpoint.read_json(newest / CONFIG_NAME)["data"]["sha256"] == open_data(data_path).sha256
    )
    return newest if same_data and not is_finished(newest) else None


@contextmanager
def _memory_said(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory with {config.batch_size} rows at a time: pass --batch-size "
            f"{max(1, config.batch_size // 2)} (the result is the same)."
        ) from error


def _train(run: Run, progress: Progress) -> int | None:
    with _memory_said(run.config):
        stopped_by = train(run, progress)
    name = run.folder.name
    if run.folder.parent != Path("runs"):  # the commands' own default
        name += f" --runs-dir {run.folder.parent}"
    if stopped_by is not None:
        log.info(
            "Stopped after step %s, everything saved. Go on: python -m train resume %s",
            f"{progress.step:,}",
            name,
        )
        return stopped_by
    assert progress.best_val_loss is not None
    best = checkpoint.pointed(run.folder, "best")
    log.info(
        "%s: val loss %.4f, the best of this run. Talk to it: python -m sample chat %s",
        best,
        progress.best_val_loss,
        name,
    )
    return None
