"""A folder in Hugging Face's layout -> a run, from whose weights training begins or that talks.

    config.json, model.safetensors or its shards, tokenizer.json  ->  runs/NAME/step-00000000/

Nothing in it is executed, and what no switch of ours expresses is refused by its name.
"""

import json
import logging
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
from common.files import write_json
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
from train.config import TrainConfig

log = logging.getLogger(__name__)

# Beside the weights: a head that is tied, and the masks that older files of GPT-2 hold.
IGNORED = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")


def import_folder(source: Path, runs_dir: Path, name: str) -> Path:
    """Make a run called ``name`` of the network and the vocabulary in ``source``; return it.

    Raises CheckpointError, ConfigError or DataError, and makes no run, where one is not to be had.
    """
    said = _read_json(source / CONFIG_NAME)
    shape = model_config(said, str(source / CONFIG_NAME))
    check_stock(shape)
    tokenizer = read_tokenizer(source / TOKENIZER_NAME)
    rows = max(shape.vocab_size, tokenizer.vocab_size)
    pad = rows if rows > tokenizer.vocab_size else 1  # rows without a token stay, as padding
    config = replace(shape, vocab_size=tokenizer.vocab_size, pad_vocab=pad)
    weights = _read_weights(source, shape, rows)
    with SkipInit():
        model = GPT(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: its weights do not fit its config.json ({error})."
        ) from error
    if n_added := rows - shape.vocab_size:
        log.info("vocabulary  with %d special tokens more, each as the mean of all", n_added)
    run = run_dir.new_run(runs_dir, name)
    try:
        state = {"progress": {"step": 0, "n_tokens": 0}}
        folder = save_checkpoint(
            run, 0, model, {}, state, tokenizer, chat_template=_chat_template(source)
        )
        run_dir.write_pointer(run, "best", folder)
        settings = {
            "format": run_dir.FORMAT_VERSION, "imported_from": str(source.resolve()),
            "model": asdict(config), "train": asdict(TrainConfig()),
        }  # fmt: skip
        write_json(run / run_dir.CONFIG_NAME, settings)  # last: without it it is no run
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise
    log.info("%s: of %s. Talk to it: python -m sample chat %s", run, source, run.name)
    return run


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


def _read_weights(source: Path, shape: ModelConfig, rows: int) -> dict[str, Tensor]:
    """Return our tensors in float32, made of those there; the vocabulary's with ``rows``."""
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
    for name in {"wte.weight", "lm_head.weight"} & ours.keys():
        if n_added := rows - len(ours[name]):
            mean = ours[name].mean(dim=0, keepdim=True)
            ours[name] = torch.cat((ours[name], mean.expand(n_added, -1)))
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
