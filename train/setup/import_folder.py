"""What others trained -> a run, from whose weights training begins or that talks.

    config.json, model.safetensors or its shards, tokenizer.json  ->  runs/NAME/step-00000000/
    nanoGPT's ckpt.pt, llm.c's .bin (import_file.py)

Nothing in it is executed, and what no switch of ours expresses is refused by its name.
"""

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common import run_dir
from common.chat_format import CHAT_TEMPLATE, TEMPLATE_NAME
from common.checkpoint import MODEL_NAME, SkipInit, save_checkpoint
from common.errors import CheckpointError, ConfigError
from common.files import fsync, make_folder, write_json
from common.huggingface.network import (
    CONFIG_NAME,
    INDEX_NAME,
    Weight,
    check_stock,
    model_config,
    weights_of,
)
from common.huggingface.tokenizer_json import TOKENIZER_NAME, read_tokenizer
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from train.config import TrainConfig
from train.setup import import_file
from train.setup.import_file import IGNORED, Imported, tokenizer_named

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
NEEDED = [CONFIG_NAME, "model*.safetensors", INDEX_NAME, "tokenizer*.json", TEMPLATE_NAME]


def import_folder(
    source: str | Path, runs_dir: Path, name: str, tokenizer: str | None = None
) -> Path:
    """Make a run called ``name`` of the network and the vocabulary in ``source``; return it.

    A folder, a file that import_file.py reads, or the name of a repository on Hugging Face's hub.
    Raises CheckpointError, ConfigError or DataError, and makes no run, where one is not to be had.
    """
    run_dir.check_name(name)
    path = Path(source)
    if not path.exists() and HUB_NAME.fullmatch(str(source)):
        path = _download(str(source))
    own = tokenizer_named(tokenizer) if tokenizer else None
    found = import_file.read(path, own) if path.is_file() else _read_folder(path, own)
    n_rows = len(found.weights["wte.weight"])
    rows = max(n_rows, found.tokenizer.vocab_size)
    if n_added := rows - n_rows:
        log.info("vocabulary  with %d special tokens more, each as the mean of all", n_added)
    for key in {"wte.weight", "lm_head.weight"} & found.weights.keys() if n_added else ():
        mean = found.weights[key].mean(dim=0, keepdim=True)
        found.weights[key] = torch.cat((found.weights[key], mean.expand(n_added, -1)))
    n_ids = found.tokenizer.vocab_size
    pad = rows if rows > n_ids else 1  # rows without a token stay, as padding
    config = replace(found.shape, vocab_size=n_ids, pad_vocab=pad)
    with SkipInit():
        model = GPT(config)
    try:
        model.load_state_dict(found.weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its settings ({error}).") from error
    settings = {
        "format": run_dir.FORMAT_VERSION, "imported_from": str(path.resolve()),
        "model": asdict(config), "train": asdict(TrainConfig()),
    }  # fmt: skip
    unfinished = runs_dir / f".{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        state = {"progress": {"step": 0, "n_tokens": 0}}
        folder = save_checkpoint(
            unfinished, 0, model, {}, state, found.tokenizer, chat_template=found.chat_template
        )
        run_dir.write_pointer(unfinished, "best", folder)
        write_json(unfinished / run_dir.CONFIG_NAME, settings)
        run = run_dir.new_run(runs_dir, name)
        os.rename(unfinished, run)  # in the place of an empty folder
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync(runs_dir)
    log.info("%s: of %s. Talk to it: python -m sample chat %s", run, source, run.name)
    return run


def _download(name: str) -> Path:
    """Return the folder, in the hub's cache, of what is needed of a repository there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=NEEDED))
    except (OSError, ValueError) as error:  # requests' are OSErrors
        raise CheckpointError(
            f"{name}: no file or folder here, and not to be had from Hugging Face's hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def _read_folder(source: Path, tokenizer: Tokenizer | None) -> Imported:
    said = _read_json(source / CONFIG_NAME)
    shape = model_config(said, str(source / CONFIG_NAME))
    check_stock(shape)
    eot_id = said.get("eos_token_id")
    if tokenizer is None:
        eot_id = eot_id[0] if isinstance(eot_id, list) else eot_id
        tokenizer = read_tokenizer(source / TOKENIZER_NAME, eot_id)
    return Imported(shape, _read_weights(source, shape), tokenizer, _chat_template(source))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no object of settings.")
    return value


def _chat_template(source: Path) -> str | None:
    """Return the chat format of the network, where it is ours: another would not be kept to."""
    path = source / TEMPLATE_NAME
    template = path.read_text("utf-8", "replace") if path.exists() else None
    if template not in (None, CHAT_TEMPLATE):
        log.warning("%s: not the chat format of this program: it continues texts.", path)
        return None
    return template


def _read_weights(source: Path, shape: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors in float32, made of those there."""
    index = source / INDEX_NAME
    place: dict[str, tuple[Path, str]] = {}  # where each is, under its name in the whole network
    try:
        names = {*_read_json(index)["weight_map"].values()} if index.exists() else {MODEL_NAME}
        for path in sorted(source / name for name in names):
            with safe_open(str(path), framework="pt") as file:
                keys = list(file.keys())
            place |= {key.removeprefix("transformer."): (path, key) for key in keys}
        weights = sorted(weights_of(shape), key=attrgetter("source"))
        ours = {}
        for name, parts in groupby(weights, key=attrgetter("source")):
            ours[name] = _joined([(part, _read(place, source, part)) for part in parts], source)
    except (OSError, SafetensorError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: its weights cannot be read ({error}).") from error
    known = {weight.name.removeprefix("transformer.") for weight in weights}
    for name in sorted(place.keys() - known):
        if not name.endswith(IGNORED):
            raise ConfigError(f"{source}: holds {name}, for which Quern's networks have no place.")
    return ours


def _read(place: dict[str, tuple[Path, str]], source: Path, weight: Weight) -> Tensor:
    name = weight.name.removeprefix("transformer.")
    if name not in place:
        raise CheckpointError(f"{source}: lacks {weight.name}.")
    path, key = place[name]
    with safe_open(str(path), framework="pt") as file:
        found: Tensor = file.get_tensor(key)
    found = found.T if weight.is_transposed else found
    # at once, as what is freed in between stays with the process: a quarter of the weights
    return torch.empty(found.shape, dtype=torch.float32).copy_(found)


def _joined(parts: list[tuple[Weight, Tensor]], source: Path) -> Tensor:
    """Return one of our tensors, of those that are rows of it there."""
    rows: dict[tuple[int, int | None], Tensor] = {}
    for weight, tensor in parts:
        if weight.is_zero:
            if tensor.any():
                raise ConfigError(
                    f"{source}: {weight.name} is not 0, but --bias is off by config.json."
                )
        elif not torch.equal(rows.setdefault(weight.rows, tensor), tensor):
            raise ConfigError(
                f"{source}: {weight.name} is not the same as its gate's, so its MLP is not the "
                "square of relu."
            )
    return torch.cat([rows[key] for key in sorted(rows)]) if len(rows) > 1 else rows.popitem()[1]
