"""Networks in a file of nanoGPT's or llm.c's, and vocabularies that they go with.

    ckpt.pt   torch.save of model, model_args and more; no vocabulary, but data/*/meta.pkl
    .bin      256 int32, then all tensors in float32 or bfloat16; GPT-2's vocabulary

Pickles are read so that nothing in them is run: whatever would name a class or a function is
refused. Sources: nanoGPT, train.py and data/shakespeare_char/prepare.py, whose GELU is the
exact one since 2023; llm.c, train_gpt2.py, write_model.
"""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import run_dir, tokenizer
from common.checkpoint import SkipInit
from common.dataset import META_NAME
from common.errors import CheckpointError, ConfigError
from common.huggingface.network import GPT2_LAYER
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer

MASKS = (".attn.bias", ".attn.masked_bias")  # in older files of GPT-2
ZIP_MAGIC, LLMC_MAGIC = b"PK\x03\x04", (20_240_326).to_bytes(4, "little")
LLMC_DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by the version of the file
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")  # as both have them


class Imported(NamedTuple):
    """A network, and what it goes with."""

    shape: ModelConfig
    weights: dict[str, Tensor]  # by our names, float32
    tokenizer: Tokenizer
    chat_template: str | None = None


def read_file(path: Path, given: Tokenizer | None) -> Imported:
    """Return the network in a file, told by its first bytes, with the ``given`` ids or GPT-2's."""
    magic = np.fromfile(path, np.uint8, 4).tobytes()
    if magic not in (ZIP_MAGIC, LLMC_MAGIC):
        raise CheckpointError(
            f"{path}: neither a ckpt.pt of nanoGPT, which begins with PK, nor a .bin of llm.c, "
            "which begins with 20240326. Imported are these, and folders of transformers'."
        )
    shape, weights = (_read_nanogpt if magic == ZIP_MAGIC else _read_llmc)(path)
    if given is None and shape.vocab_size not in (50_257, 50_304):  # the second: nanoGPT's rows
        raise ConfigError(
            f"{path}: has {shape.vocab_size:,} ids, and does not say what they stand for. Pass "
            "--tokenizer with nanoGPT's meta.pkl, or a data folder or run of that vocabulary."
        )
    return Imported(shape, weights, given or tokenizer.tiktoken_tokenizer("gpt2"))


def _read_nanogpt(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return what a ckpt.pt holds; the weights stay in the file until they are read."""
    saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    args = {name: saved["model_args"][name] for name in (*SIZES, "bias")}
    weights = {
        name.removeprefix("_orig_mod.").removeprefix("transformer."): tensor.float()
        for name, tensor in saved["model"].items()
        if not name.endswith(MASKS)
    }
    # the embedding once more, unless somebody changed that
    if is_tied := torch.equal(weights["lm_head.weight"], weights["wte.weight"]):
        del weights["lm_head.weight"]
    args |= {"tied_head": is_tied, "mlp": "gelu_erf"}
    return ModelConfig(**ARCHITECTURES["gpt2"] | args), weights


def _read_llmc(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return what a .bin holds: each kind of tensor of all layers, then the next kind."""
    with path.open("rb") as file:
        _, version, *sizes, n_rows = (np.fromfile(file, "<i4", 256).tolist() + [0] * 8)[:8]
        if version not in LLMC_DTYPES:
            raise CheckpointError(f"{path}: of version {version}; read are 3 and 5 of llm.c's.")
        (T, V, n_layer, _, C), dtype = sizes, LLMC_DTYPES[version]  # noqa: N806
        # before a network is made, which a damaged header would make without end
        promised = 1024 + dtype.itemsize * C * (n_rows + T + n_layer * (12 * C + 13) + 2)
        if path.stat().st_size != promised or min(sizes) < 1 or n_rows < V:
            raise ValueError(f"its header promises {promised:,} bytes")
        shape = ModelConfig(**ARCHITECTURES["gpt2"] | dict(zip(SIZES, sizes, strict=True)))
        with SkipInit():
            weights = GPT(replace(shape, pad_vocab=n_rows)).state_dict()
        both = [f"{name}.{part}" for name in GPT2_LAYER for part in ("weight", "bias")]
        of_layers = [f"h.{i}.{name}" for name in both for i in range(n_layer)]
        for name in ("wte.weight", "wpe.weight", *of_layers, "ln_f.weight", "ln_f.bias"):
            numbers = np.fromfile(file, f"<i{dtype.itemsize}", weights[name].numel())
            weights[name].copy_(torch.from_numpy(numbers).view(dtype).view_as(weights[name]))
    return shape, weights


class _PlainUnpickler(pickle.Unpickler):  # noqa: S301
    """Reads numbers, texts, lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever else would be named."""
        raise ValueError(f"it names {module}.{name}, which would run, and was not run")


def named_tokenizer(name: str) -> Tokenizer:
    """Return the vocabulary of a meta.pkl, a data folder or a run, or tiktoken's of this name."""
    path = Path(name)
    if path.is_file():
        with path.open("rb") as file:
            itos = _PlainUnpickler(file).load()["itos"]
        characters = tuple(itos[i] for i in range(len(itos)))
        if any(len(each.encode("utf-32-le")) != 4 for each in characters):
            raise ValueError("its itos does not list characters, as nanoGPT's meta.pkl")
        return tokenizer.CharTokenizer(characters)
    for said in (path / META_NAME, (run_dir.read_pointer(path, "best") or path) / "state.json"):
        if said.is_file():
            return tokenizer.load_tokenizer(said.parent, json.loads(said.read_bytes())["tokenizer"])
    return tokenizer.tiktoken_tokenizer(name)
