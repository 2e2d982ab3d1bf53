"""A checkpoint: a folder that is whole or is not taken.

    step-00000500/   model.safetensors, optimizer.safetensors (with --shard optimizer/, a file of
                     each process), state.json, the vocabulary, of a network that answers
                     chat_template.jinja, and manifest.json, the SHA-256 of each

It is written under another name, flushed to disk, read back from there and compared with its
manifest, then renamed; only then are older ones deleted. No pickle is written or read. A reader
takes the newest checkpoint that verifies, and says so when that is an earlier one.
"""

import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common import run_dir
from common.chat_format import TEMPLATE_NAME
from common.errors import CheckpointError
from common.files import drop_page_cache, fsync, sha256_of, write_json, wrong_size
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import FORMAT_VERSION, SHARDS_NAME, STATE_NAME, Pointer
from common.settings import from_dict
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer

log = logging.getLogger(__name__)

MODEL_NAME, OPTIMIZER_NAME = "model.safetensors", "optimizer.safetensors"
MANIFEST_NAME = "manifest.json"
CPU = torch.device("cpu")


def save_checkpoint(
    run: Path,
    step: int,
    model: GPT,
    optimizer: dict[str, Tensor] | Path,
    state: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    weights: dict[str, Tensor] | None = None,
    chat_template: str | None = None,
    keep: int = 2,
    good_step: int | None = None,
) -> Path:
    """Write step-STEP/ whole, read it back, point ``latest`` at it, then delete older ones.

    The last ``keep`` stay, the best, and the newest up to ``good_step``, the last step whose
    weights are known to be of use. Of a network that is sharded over processes, ``weights`` are
    all of it, and ``optimizer`` is shards_dir with every process's shard; it is moved. Where the
    disk will not take it, or gives back other bytes, earlier checkpoints are untouched.
    """
    folder = run_dir.checkpoint_dir(run, step)
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
        if chat_template is not None:
            (unfinished / TEMPLATE_NAME).write_text(chat_template, "utf-8")
        description = {
            "format": FORMAT_VERSION,
            "step": step,
            "saved_at": time.time(),  # by which the newest run is found
            "model": asdict(model.config),
            "tokenizer": describe_tokenizer(tokenizer),
        }
        write_json(unfinished / STATE_NAME, description | state)
        _write_manifest(unfinished)
        if folder.exists():  # the same step again, after a resume from before it
            shutil.rmtree(folder)
        os.rename(unfinished, folder)
        fsync(run)
        run_dir.write_pointer(run, "latest", folder)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        remedy = "Free some space"
        if isinstance(error, CheckpointError):
            remedy = "The disk gave back other bytes than were written: copy the run to another"
        raise CheckpointError(
            f"{folder}: cannot be saved ({error}). Earlier checkpoints are as they were. {remedy}, "
            f"then go on: python -m train resume {run.name} --runs-dir {run.parent}"
        ) from error
    run_dir.prune(run, folder, keep, step if good_step is None else good_step)
    return folder


def _write_manifest(folder: Path) -> None:
    """Flush all files, then write their sizes and hashes, then verify that the disk holds them."""
    files = {}
    mode = folder.stat().st_mode & 0o666  # what the umask gives: safetensors' own is 0600
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.chmod(mode)
        fsync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if (folder / SHARDS_NAME).is_dir():
        fsync(folder / SHARDS_NAME)
    write_json(folder / MANIFEST_NAME, {"format": FORMAT_VERSION, "files": files})
    for name in [*files, MANIFEST_NAME]:
        drop_page_cache(folder / name)  # what memory holds would verify in any case
    verify_checkpoint(folder)


def verify_checkpoint(folder: Path, *, skip_optimizer: bool = False) -> None:
    """Raise CheckpointError that names the first file whose size or SHA-256 is not the manifest's.

    With ``skip_optimizer`` only sizes of its state, twice as large as the weights, are compared.
    """
    manifest = run_dir.read_json(folder / MANIFEST_NAME)
    try:
        promised = [(n, e["size_bytes"], e["sha256"]) for n, e in manifest["files"].items()]
        _ = manifest["files"][MODEL_NAME]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST_NAME}: damaged, it does not list the sizes and hashes of files."
        ) from error
    for name, size_bytes, sha256 in promised:
        path = folder / name
        if wrong := wrong_size(path, size_bytes, "the manifest"):
            raise CheckpointError(wrong)
        is_optimizer = name == OPTIMIZER_NAME or path.parent.name == SHARDS_NAME
        if not (skip_optimizer and is_optimizer) and sha256_of(path) != sha256:
            raise CheckpointError(f"{path}: its content changed after it was written (SHA-256).")


def newest_valid(
    run: Path, pointer: Pointer, *, last_step: int | None = None, skip_optimizer: bool = False
) -> Path:
    """Return the checkpoint that ``pointer`` names or, where it fails, the newest that verifies.

    With ``last_step``, of those up to that step; ``skip_optimizer`` as in verify_checkpoint.
    """
    candidates = run_dir.checkpoints(run, last_step=last_step)[::-1]
    preferred = run_dir.read_pointer(run, pointer)
    if preferred is not None and (last_step is None or preferred in candidates):
        candidates = [preferred, *(folder for folder in candidates if folder != preferred)]
    for folder in candidates:
        try:
            verify_checkpoint(folder, skip_optimizer=skip_optimizer)
        except CheckpointError as error:
            log.warning("%s Stepping back to the checkpoint before.", error.message)
        else:
            if folder != candidates[0]:
                log.warning("Using %s instead.", folder)
            return folder
    raise CheckpointError(
        f"{run}: holds no checkpoint that verifies. Train it anew, by the command that began it: "
        "python -m train pretrain, finetune or preference."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the network, its vocabulary, and state.json."""

    model: GPT
    tokenizer: Tokenizer
    state: dict[str, Any]
    chat_template: str | None = None  # of a network that answers, in Jinja


class SkipInit(TorchFunctionMode):
    """Within it modules do not initialize their weights: the file's will replace them.

    The meta device would do as much, but imports torch's compiler, a second and more.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_checkpoint(
    folder: Path, device: torch.device = CPU, *, mapped: bool = False
) -> Checkpoint:
    """Load a checkpoint that was verified: nothing outside its folder is needed.

    With ``mapped``, weights on the CPU stay in the file until they are read; for who only reads.
    """
    state = run_dir.read_json(folder / STATE_NAME)
    with SkipInit():
        model = GPT(from_dict(ModelConfig, state["model"], str(folder / STATE_NAME)))
    try:
        weights = load_file(folder / MODEL_NAME)  # a memory map
        if not mapped:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        message = f"{folder / MODEL_NAME}: does not fit its state.json ({error})."
        raise CheckpointError(message) from error
    path = folder / TEMPLATE_NAME
    template = path.read_text("utf-8") if path.exists() else None
    tokenizer = load_tokenizer(folder, state["tokenizer"])
    return Checkpoint(model.to(device), tokenizer, state, template)
