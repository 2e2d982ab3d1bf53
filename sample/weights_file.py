"""Weights in one safetensors file: written, and read to sample from.

``export --to weights`` puts into the file's metadata what sampling needs beside them: the shape,
the vocabulary, the chat template, and what is known of the run.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from common.checkpoint import MODEL_NAME, Checkpoint, load_checkpoint
from common.errors import ConfigError, explained
from common.huggingface.network import Weight
from common.run_dir import STATE_NAME

SUFFIX, METADATA_KEY = ".safetensors", "quern"
KNOWN = ("step", "n_tokens", "n_base_tokens", "val_loss", "val_bpb")  # of a RunInfo
DTYPES = ("float32", "bfloat16", "float16")


def read_tensor(path: Path, weight: Weight, dtype: str) -> Tensor:
    """Return the tensor that ``weight`` makes of one in the file ``path``.

    The file is mapped anew for each, so that none stays in memory beside what is made of it. In
    float32 that may be a part of the map: clone what is kept.
    """
    with safe_open(str(path), framework="pt") as file:
        found = weight.of(file.get_tensor(weight.source))
    kind = getattr(torch, dtype) if found.is_floating_point() else found.dtype
    if kind == torch.float16:
        check_range(weight.name, found)
    return found.to(kind).contiguous()


def check_range(name: str, values: Tensor) -> None:
    """Raise ConfigError where a number is beyond what float16 holds."""
    if values.half().isinf().any():
        raise ConfigError(
            f"{name}: holds numbers beyond 65,504, the largest of float16: pass --dtype bfloat16."
        )


def read_tensors(path: Path, weights: Iterable[Weight], dtype: str) -> dict[str, Tensor]:
    """Return all that ``weights`` make of the tensors in the file ``path``, in memory once."""
    return {weight.name: read_tensor(path, weight, dtype).clone() for weight in weights}


def read_weights(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the network in float32 with its vocabulary, and what is known of the run."""
    with explained(f"{path}: cannot be read as weights that sample export --to weights wrote"):
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {})[METADATA_KEY])
        with tempfile.TemporaryDirectory(suffix=f"-{path.name}") as name:  # which errors name
            folder = Path(name)
            vocabulary = folder / Path(said["state"]["tokenizer"]["file"]).name
            vocabulary.write_text(said["vocabulary"], "utf-8", newline="")
            (folder / STATE_NAME).write_text(json.dumps(said["state"]), "utf-8")
            (folder / MODEL_NAME).symlink_to(path.resolve())  # last: nothing is written through it
            loaded = load_checkpoint(folder, mapped=True)
        loaded.model.float()
        template, info = said["chat_template"], {key: said["info"][key] for key in KNOWN}
    return replace(loaded, chat_template=template), info
