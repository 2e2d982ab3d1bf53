"""Weights in one safetensors file: written a tensor at a time, and read to sample from.

``export --to weights`` puts into the file's metadata what sampling needs beside them: the shape,
the vocabulary, the chat template, and what is known of the run.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint import Checkpoint, SkipInit
from common.errors import CheckpointError
from common.files import atomic_write
from common.huggingface.network import Weight
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.settings import from_dict
from common.tokenizer import load_tokenizer

SUFFIX, METADATA_KEY = ".safetensors", "quern"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # their names in the header


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a file, which is read only when it is its turn."""

    name: str
    shape: torch.Size
    source: Path
    weight: Weight

    def read(self) -> Tensor:
        """Return it; the file is mapped anew for each, so that none stays in memory."""
        with safe_open(str(self.source), framework="pt") as file:
            return self.weight.of(file.get_tensor(self.weight.source))


def tensors_of(path: Path, weights: list[Weight]) -> list[TensorToWrite]:
    """Return the tensors that ``weights`` make of those in the file ``path``, not read yet."""
    with safe_open(str(path), framework="pt") as file:
        shapes = [file.get_slice(weight.source).get_shape() for weight in weights]
    found = [w.of(torch.empty(1).expand(shape)) for w, shape in zip(weights, shapes, strict=True)]
    return [TensorToWrite(w.name, f.shape, path, w) for w, f in zip(weights, found, strict=True)]


def write_tensors(
    path: Path, tensors: Sequence[TensorToWrite], dtype: str, metadata: dict[str, str]
) -> None:
    """Write a safetensors file of which one tensor at a time is in memory.

    Raises CheckpointError where a number is beyond what ``dtype`` holds.
    Source: https://github.com/huggingface/safetensors, README.md, "Format".
    """
    kind: torch.dtype = getattr(torch, dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.shape.numel() * kind.itemsize
        places = {"shape": tensor.shape, "data_offsets": (begin, end)}
        header[tensor.name] = {"dtype": DTYPES[dtype], **places}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of their size
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.read()
            if kind == torch.float16:
                check_range(tensor.name, values)
            file.write(values.to(kind).flatten().view(torch.uint8).numpy().data)


def check_range(name: str, values: Tensor) -> None:
    """Raise CheckpointError where a number is beyond what float16 holds."""
    if (values.half().isinf() > values.isinf()).any():
        raise CheckpointError(
            f"{name}: holds numbers beyond 65,504, the largest of float16: pass --dtype bfloat16."
        )


def read_weights(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the network in float32 with its vocabulary, and what is known of the run."""
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {})[METADATA_KEY])
        state = said["state"]
        with SkipInit():
            model = GPT(from_dict(ModelConfig, state["model"], str(path)))
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}  # a memory map
        model.load_state_dict(weights, assign=True)
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = Path(folder) / state["tokenizer"]["file"]
            vocabulary.write_text(said["vocabulary"], "utf-8", newline="")
            tokenizer = load_tokenizer(vocabulary.parent, state["tokenizer"])
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as weights that sample export --to weights wrote ({error})."
        ) from error
    return Checkpoint(model, tokenizer, state, said["chat_template"]), said["info"]
