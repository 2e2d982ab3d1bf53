"""The on-disk contract of a run's folder: settings, metrics, and checkpoints that are whole.

    runs/NAME/config.json      every effective setting (train writes it)
    runs/NAME/metrics.jsonl    one JSON object a logged step
    runs/NAME/step-00000500/   model.safetensors, optimizer.safetensors (with --shard optimizer/, a
                               file of each process), state.json, the vocabulary, and
                               manifest.json, the SHA-256 of each
    runs/NAME/latest, best     text files that hold a checkpoint's folder name

A checkpoint is written under another name, flushed to disk, read back from there and compared with
its manifest, then renamed; only then are older ones deleted. No pickle is written or read. A reader
takes the newest checkpoint that verifies, and says so when it had to step back.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import CheckpointError
from common.files import (
    forget_cached,
    fsync_file,
    fsync_folder,
    sha256_of,
    write_json,
    write_text,
)
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.settings import from_dict
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
CONFIG_NAME, MANIFEST_NAME = "config.json", "manifest.json"
MODEL_NAME, OPTIMIZER_NAME, STATE_NAME = "model.safetensors", "optimizer.safetensors", "state.json"
SHARDS_NAME = "optimizer"  # a folder, in place of OPTIMIZER_NAME
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
    optimizer: dict[str, Tensor] | Path,
    state: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    weights: dict[str, Tensor] | None = None,
    keep: int = 2,
    good_step: int | None = None,
) -> Path:
    """Write step-STEP/ whole, read it back, point ``latest`` at it, then delete older ones.

    The last ``keep`` stay, the best, and the newest up to ``good_step``, the last step whose
    weights are known to be of use. Of a network that is sharded over processes, ``weights`` are
    all of it, and ``optimizer`` is a folder of this run with every process's share; it is moved.

    Raises: CheckpointError when the disk will not take it, or does not give it back as it was
    written; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, step)
    unfinished = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        weights = model.state_dict() if weights is None else weights
        weights = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(weights, unfinished / MODEL_NAME)
        if isinstance(optimizer, Path):
            os.rename(optimizer, unfinished / SHARDS_NAME)
        else:
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
        _read_back(unfinished)
        if folder.exists():  # the same step again, after a resume from before it
            shutil.rmtree(folder)
        os.rename(unfinished, folder)
        fsync_folder(run)
        point(run, "latest", folder)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        remedy = "Free some space"
        if isinstance(error, CheckpointError):
            remedy = "The disk gave back other bytes than were written: copy the run to another"
        raise CheckpointError(
            f"{folder}: cannot be saved ({error}). Earlier checkpoints are as they were. {remedy}, "
            f"then go on: python -m train resume {run.name} --runs-dir {run.parent}"
        ) from error
    _delete_old(run, folder, keep, step if good_step is None else good_step)
    return folder


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` updates is."""
    return run / f"step-{step:08d}"


def shards_folder(run: Path, step: int) -> Path:
    """Return where processes write their shares of the optimizer before save_checkpoint.

    By its name, what is left there of a killed run is deleted as an unfinished checkpoint is.
    """
    return run / f"{checkpoint_folder(run, step).name}.{SHARDS_NAME}.tmp"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in _files(folder):
        fsync_file(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if (folder / SHARDS_NAME).is_dir():
        fsync_folder(folder / SHARDS_NAME)
    write_json(folder / MANIFEST_NAME, {"format": FORMAT_VERSION, "files": files})


def _read_back(folder: Path) -> None:
    """Verify what was just written as the disk holds it, not as memory still does."""
    for path in _files(folder):
        forget_cached(path)
    verify_checkpoint(folder)


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
    return sorted(folder for folder in run.glob("step-*") if _is_named(folder, ""))


def _is_named(folder: Path, rest: str) -> bool:
    """Tell whether save_checkpoint gave a name to this, and not someone to a copy."""
    return re.fullmatch(rf"step-\d{{8,}}{rest}", folder.name) is not None and folder.is_dir()


def last_good(run: Path, good_step: int) -> Path | None:
    """Return the newest checkpoint up to ``good_step`` that verifies, None where there is none.

    Raises: CheckpointError when none of those that there are verifies.
    """
    if not _up_to(run, good_step):
        return None
    return newest_valid(run, "latest", last_step=good_step)


def step_back_to(run: Path, folder: Path | None) -> None:
    """Make ``folder`` the latest checkpoint, or none; delete those after it.

    A best one that was deleted is no longer named.
    """
    if folder is None:
        (run / "latest").unlink(missing_ok=True)
    else:
        point(run, "latest", folder)
    later = [each for each in checkpoints(run) if folder is None or each > folder]
    if pointed(run, "best") in later:
        (run / "best").unlink()
    _delete(run, later)


def _up_to(run: Path, step: int) -> list[Path]:
    return [folder for folder in checkpoints(run) if folder <= checkpoint_folder(run, step)]


def _delete_old(run: Path, newest: Path, keep: int, good_step: int) -> None:
    # those after the newest are damaged: the run stepped back behind them
    up_to_newest = [folder for folder in checkpoints(run) if folder <= newest]
    kept = {*up_to_newest[-keep:], *_up_to(run, good_step)[-1:], pointed(run, "best")}
    _delete(run, set(checkpoints(run)) - kept)


def _delete(run: Path, folders: Iterable[Path]) -> None:
    for folder in folders:
        doomed = folder.with_name(folder.name + ".tmp")  # half deleted must not look damaged
        os.rename(folder, doomed)
    for unfinished in run.glob("step-*.tmp"):  # also what a killed run left
        if _is_named(unfinished, rf"(\.{SHARDS_NAME})?\.tmp"):
            shutil.rmtree(unfinished)


def hold(run: Path) -> int:
    """Keep other trainings away from a run until the descriptor that is returned is closed.

    Raises: CheckpointError when another process trains it.
    """
    import fcntl

    descriptor = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"{run}: another process trains this run. Wait for it, or train a run of another name."
        ) from error
    except OSError:  # a file system without locks: then nobody can be kept away
        pass
    return descriptor


def verify_checkpoint(folder: Path, *, without: str | None = None) -> None:
    """Read a checkpoint's files and compare sizes and SHA-256 with its manifest.

    The file called ``without`` is not read, where it is not needed either (nor are the shards that
    may be there in place of the optimizer's): its size is compared in no time, its hash takes twice
    as long as that of the weights.

    Raises: CheckpointError that names the first file that is not as it was written.
    """
    manifest = read_json(folder / MANIFEST_NAME)
    try:
        promised = [(n, e["size_bytes"], e["sha256"]) for n, e in manifest["files"].items()]
        _ = manifest["files"][MODEL_NAME]
    except KeyError as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: damaged, it lacks the key {error}."
        ) from error
    except (AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: damaged, it is no list of files with sizes and hashes."
        ) from error
    for name, size_bytes, sha256 in promised:
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != size_bytes:
            there = "missing" if size is None else f"{size:,} bytes"
            raise CheckpointError(
                f"{path}: {there}, but the manifest promises {size_bytes:,} bytes."
            )
        unread = name == without or (without == OPTIMIZER_NAME and path.parent.name == SHARDS_NAME)
        if not unread and sha256_of(path) != sha256:
            raise CheckpointError(f"{path}: its content changed after it was written (SHA-256).")


def newest_valid(
    run: Path, first: Pointer, *, last_step: int | None = None, without: str | None = None
) -> Path:
    """Return the checkpoint that ``first`` names or, where it fails, the newest that verifies.

    With ``last_step``, of those up to that step; ``without`` as in verify_checkpoint.

    Raises: CheckpointError when none does.
    """
    preferred = pointed(run, first)
    candidates = [preferred] if preferred is not None else []
    candidates += [folder for folder in reversed(checkpoints(run)) if folder != preferred]
    if last_step is not None:
        candidates = [folder for folder in candidates if folder in _up_to(run, last_step)]
    for folder in candidates:
        try:
            verify_checkpoint(folder, without=without)
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


class Undrawn(TorchFunctionMode):
    """Within it networks are made without drawing their weights: the file's will replace them.

    The memory that they would have is only reserved. The meta device would do as much, but imports
    torch's compiler, a second and more.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_checkpoint(folder: Path, device: torch.device, *, mapped: bool = False) -> Loaded:
    """Load a checkpoint that was verified: nothing outside its folder is needed.

    Where they are ``mapped``, weights on the CPU stay in the file until they are read, and take no
    memory of their own: for those who do not change them.

    Raises: CheckpointError when its parts do not fit together.
    """
    state = read_json(folder / STATE_NAME)
    with Undrawn():
        model = GPT(from_dict(ModelConfig, state["model"], str(folder / STATE_NAME)))
    try:
        weights = load_file(folder / MODEL_NAME)  # a memory map
        if not mapped:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / MODEL_NAME}: does not fit its state.json ({error})."
        ) from error
    tokenizer = load_tokenizer(folder, state["tokenizer"])
    return Loaded(model.to(device), tokenizer, state)
