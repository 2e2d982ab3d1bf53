"""The on-disk contract of a run's folder: settings, metrics, and checkpoints that are whole.

    runs/NAME/config.json      every effective setting (train writes it)
    runs/NAME/metrics.jsonl    one JSON object a logged step
    runs/NAME/step-00000500/   model.safetensors, optimizer.safetensors, state.json, the vocabulary,
                               and manifest.json, the SHA-256 of each
    runs/NAME/latest, best     text files that hold a checkpoint's folder name

A checkpoint is written under another name, flushed to disk, then renamed. No pickle is written or
read. A reader takes the newest checkpoint that verifies, and says so when it had to step back.
"""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.config import ModelConfig, from_dict
from common.errors import CheckpointError
from common.files import fsync_file, fsync_folder, sha256_of, write_json, write_text
from common.model import GPT
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
CONFIG_NAME, METRICS_NAME, MANIFEST_NAME = "config.json", "metrics.jsonl", "manifest.json"
MODEL_NAME, OPTIMIZER_NAME, STATE_NAME = "model.safetensors", "optimizer.safetensors", "state.json"
KEEP_LATEST = 2  # the newest, and one to step back to; the best is kept besides
Pointer = Literal["latest", "best"]


def new_run(runs_dir: Path, name: str) -> Path:
    """Make the folder of a new run: NAME, or NAME-2, NAME-3 where that exists."""
    if not name or Path(name).name != name:
        raise CheckpointError(f"--run {name}: a plain name is needed; --runs-dir says where.")
    number = 1
    while True:
        run = runs_dir / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise CheckpointError(f"{run}: cannot be made ({error.strerror}).") from error
        else:
            return run


def find_run(runs_dir: Path, name: str | None) -> Path:
    """Return the folder of the run called ``name``, or of the one that was last saved to.

    Raises: CheckpointError when there is none.
    """
    if name is not None:
        if not (runs_dir / name / CONFIG_NAME).is_file():
            there = ", ".join(sorted(run.name for run in list_runs(runs_dir))) or "none"
            raise CheckpointError(f"{runs_dir / name}: no such run. Runs in {runs_dir}: {there}.")
        return runs_dir / name
    saved = [run for run in list_runs(runs_dir) if (run / "latest").is_file()]
    if not saved:
        raise CheckpointError(
            f"{runs_dir}: no run with a checkpoint in it. Train one first: make train, or "
            "python -m train pretrain --data data"
        )
    return max(saved, key=lambda run: (run / "latest").stat().st_mtime_ns)


def list_runs(runs_dir: Path) -> list[Path]:
    """Return the folders of all runs."""
    return [config.parent for config in runs_dir.glob(f"*/{CONFIG_NAME}")]


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files; raise CheckpointError when it is damaged or missing."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: not of format {FORMAT_VERSION}, the one that this version reads."
        )
    return value


def save_checkpoint(
    run: Path,
    step: int,
    model: GPT,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    tokenizer: Tokenizer,
) -> Path:
    """Write step-STEP/ whole, point ``latest`` at it, delete what is no longer needed.

    Raises: CheckpointError when the disk will not take it; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, step)
    unfinished = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, unfinished / MODEL_NAME)
        save_file(optimizer, unfinished / OPTIMIZER_NAME)
        save_tokenizer(tokenizer, unfinished)
        description = {
            "format": FORMAT_VERSION,
            "step": step,
            "model": asdict(model.config),
            "tokenizer": describe_tokenizer(tokenizer),
        }
        write_json(unfinished / STATE_NAME, description | state)
        _write_manifest(unfinished)
        if folder.exists():  # the same step again, after a resume from before it
            shutil.rmtree(folder)
        os.rename(unfinished, folder)
        fsync_folder(run)
        point(run, "latest", folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: cannot be saved ({error}). Earlier checkpoints are as they were. Free some "
            f"space, then go on: python -m train resume {run.name} --runs-dir {run.parent}"
        ) from error
    _delete_old(run, folder)
    return folder


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` updates is."""
    return run / f"step-{step:08d}"


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        fsync_file(path)
        files[path.name] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST_NAME, {"format": FORMAT_VERSION, "files": files})


def point(run: Path, pointer: Pointer, folder: Path) -> None:
    """Make ``latest`` or ``best`` name a checkpoint."""
    write_text(run / pointer, folder.name + "\n")


def pointed(run: Path, pointer: Pointer) -> Path | None:
    """Return the checkpoint that ``latest`` or ``best`` names, or None where it names none."""
    try:
        return run / (run / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoint folders, the oldest first."""
    return sorted(folder for folder in run.glob("step-????????*") if folder.suffix != ".tmp")


def _delete_old(run: Path, newest: Path) -> None:
    # those after the newest are damaged: the run stepped back behind them
    up_to_newest = [folder for folder in checkpoints(run) if folder <= newest]
    keep = {*up_to_newest[-KEEP_LATEST:], pointed(run, "best")}
    for folder in set(checkpoints(run)) - keep:
        doomed = folder.with_name(folder.name + ".tmp")  # half deleted must not look damaged
        os.rename(folder, doomed)
    for unfinished in run.glob("step-*.tmp"):  # also what a killed run left
        shutil.rmtree(unfinished)


def verify_checkpoint(folder: Path) -> None:
    """Read a checkpoint's files and compare sizes and SHA-256 with its manifest.

    Raises: CheckpointError that names the first file that is not as it was written.
    """
    manifest = read_json(folder / MANIFEST_NAME)
    try:
        promised = [(n, e["size_bytes"], e["sha256"]) for n, e in manifest["files"].items()]
    except KeyError as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: damaged, it lacks the key {error}."
        ) from error
    for name, size_bytes, sha256 in promised:
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != size_bytes:
            there = "missing" if size is None else f"{size:,} bytes"
            raise CheckpointError(
                f"{path}: {there}, but the manifest promises {size_bytes:,} bytes."
            )
        if sha256_of(path) != sha256:
            raise CheckpointError(f"{path}: its content changed after it was written (SHA-256).")


def newest_valid(run: Path, first: Pointer) -> Path:
    """Return the checkpoint that ``first`` names or, where it fails, the newest that verifies.

    Raises: CheckpointError when none does.
    """
    preferred = pointed(run, first)
    candidates = [preferred] if preferred is not None else []
    candidates += [folder for folder in reversed(checkpoints(run)) if folder != preferred]
    for folder in candidates:
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            log.warning("%s Stepping back to the checkpoint before.", error.message)
        else:
            if folder != candidates[0]:
                log.warning("Using %s instead.", folder)
            return folder
    raise CheckpointError(
        f"{run}: holds no checkpoint that verifies. Train it anew: python -m train pretrain"
    )


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory: the network, its vocabulary, and state.json."""

    model: GPT
    tokenizer: Tokenizer
    state: dict[str, Any]


def load_checkpoint(folder: Path, device: torch.device) -> Loaded:
    """Load a checkpoint that was verified: nothing outside its folder is needed.

    Raises: CheckpointError when its parts do not fit together.
    """
    state = read_json(folder / STATE_NAME)
    model = GPT(from_dict(ModelConfig, state["model"], str(folder / STATE_NAME)))
    try:
        model.load_state_dict(load_file(folder / MODEL_NAME))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / MODEL_NAME}: does not fit its state.json ({error})."
        ) from error
    tokenizer = load_tokenizer(folder, state["tokenizer"])
    return Loaded(model.to(device), tokenizer, state)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line cut short by a crash is left out.

    Raises: CheckpointError that names a line before it that is damaged.
    """
    path = run / METRICS_NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: damaged ({error}). Delete that line."
            ) from error
    return records


def val_loss_at(run: Path, step: int) -> float | None:
    """Return the validation loss that was measured at ``step``, or None where none was."""
    for line in read_metrics(run):
        if line["step"] == step and "val_loss" in line:
            return float(line["val_loss"])
    return None
