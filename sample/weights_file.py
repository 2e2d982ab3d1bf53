"""Weights in one safetensors file: written, and read to sample from.

``export --to weights`` puts into the file's metadata what sampling needs beside them: the shape,
the vocabulary, the chat template, and what is known of the run.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.checkpoint import MODEL_NAME, Checkpoint, load_checkpoint
from common.errors import CheckpointError, UserError
from common.files import atomic_write
from common.huggingface.network import Weight
from common.run_dir import STATE_NAME

SUFFIX, METADATA_KEY = ".safetensors", "quern"
KNOWN = ("step", "n_tokens", "n_base_tokens", "val_loss", "val_bpb")  # of a RunInfo
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # their names in the header


def read_tensor(path: Path, weight: Weight, dtype: str) -> Tensor:
    """Return the tensor that ``weight`` makes of one in the file ``path``.

    The file is mapped anew for each, so that none stays in memory beside what is made of it. Raises
    CheckpointError where a number is beyond what ``dtype`` holds.
    """
    with safe_open(str(path), framework="pt") as file:
        found = weight.of(file.get_tensor(weight.source))
    if dtype == "float16":
        check_range(weight.name, found)
    return found.to(getattr(torch, dtype)).contiguous()


def check_range(name: str, values: Tensor) -> None:
    """Raise CheckpointError where a number is beyond what float16 holds."""
    if (values.half().isinf() > values.isinf()).any():
        raise CheckpointError(
            f"{name}: holds numbers beyond 65,504, the largest of float16: pass --dtype bfloat16."
        )


def write_tensors(
    path: Path, source: Path, weights: Sequence[Weight], dtype: str, metadata: dict[str, str]
) -> None:
    """Write a safetensors file of what ``weights`` make of the tensors in the file ``source``.

    One tensor at a time is in memory; save_file would hold all, and leave a file if it is killed.
    Source: https://github.com/huggingface/safetensors, README.md, "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    end = 0
    with safe_open(str(source), framework="pt") as file:
        for weight in weights:
            stored = torch.empty(1).expand(file.get_slice(weight.source).get_shape())
            shape = weight.of(stored).shape  # without memory
            begin, end = end, end + shape.numel() * getattr(torch, dtype).itemsize
            about = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": (begin, end)}
            header[weight.name] = about
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of their size
    with atomic_write(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for weight in weights:
            values = read_tensor(source, weight, dtype)
            out.write(values.flatten().view(torch.uint8).numpy().data)


def read_weights(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the network in float32 with its vocabulary, and what is known of the run."""
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {})[METADATA_KEY])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            vocabulary = folder / Path(said["state"]["tokenizer"]["file"]).name
            vocabulary.write_text(said["vocabulary"], "utf-8", newline="")
            (folder / STATE_NAME).write_text(json.dumps(said["state"]), "utf-8")
            (folder / MODEL_NAME).symlink_to(path.resolve())  # last: nothing is written through it
            loaded = load_checkpoint(folder, torch.device("cpu"), mapped=True)
        loaded.model.float()
        template, info = said["chat_template"], {key: said["info"][key] for key in KNOWN}
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, UserError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as weights that sample export --to weights wrote ({error})."
        ) from error
    return replace(loaded, chat_template=template), info
