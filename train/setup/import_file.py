"""Networks of nanoGPT and llm.c, each in one file, and the vocabulary that they go with.

    ckpt.pt   torch.save of model, model_args and more; no vocabulary, but data/*/meta.pkl
    .bin      256 int32, then all tensors in float32 or bfloat16; GPT-2's vocabulary

Both are pickles at first sight, or may be: nothing is loaded that could name a function.
Sources: nanoGPT, train.py and data/shakespeare_char/prepare.py; llm.c, train_gpt2.py, write_model.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import run_dir
from common.checkpoint import SkipInit, newest_valid
from common.dataset import META_NAME, open_data
from common.errors import CheckpointError, ConfigError, DataError
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import (
    SPECIAL_TOKENS,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    tiktoken_tokenizer,
)

# Beside the weights: a head that is tied, and the masks that older files of GPT-2 hold.
IGNORED = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")
ZIP_MAGIC, LLMC_MAGIC = b"PK\x03\x04", (20_240_326).to_bytes(4, "little")
LLMC_DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by the version of the file
HEADER_BYTES, BAD_CONTENT = 1024, (LookupError, TypeError, AttributeError)
SIZES = ("block_size", "n_layer", "n_head", "n_embd", "vocab_size")  # as both name them


class Imported(NamedTuple):
    """A network, and what it goes with."""

    shape: ModelConfig
    weights: dict[str, Tensor]  # by our names, float32
    tokenizer: Tokenizer
    chat_template: str | None = None


def read(path: Path, tokenizer: Tokenizer | None) -> Imported:
    """Return the network in a file, told by its first bytes, with ``tokenizer`` or GPT-2's."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic not in (ZIP_MAGIC, LLMC_MAGIC):
        raise CheckpointError(
            f"{path}: neither a ckpt.pt of nanoGPT, which begins with PK, nor a .bin of llm.c, "
            "which begins with 20240326. Imported are these, and folders of transformers'."
        )
    shape, weights = (_read_nanogpt if magic == ZIP_MAGIC else _read_llmc)(path)
    n_rows = len(weights["wte.weight"])
    if tokenizer is None and shape.vocab_size not in (50_257, 50_304):  # the second: nanoGPT's rows
        raise ConfigError(
            f"{path}: has {shape.vocab_size:,} ids, and does not say what they stand for. Pass "
            "--tokenizer with nanoGPT's meta.pkl, or a data folder or run of that vocabulary."
        )
    tokenizer = tokenizer or tiktoken_tokenizer("gpt2")
    if (n_ids := tokenizer.vocab_size - len(SPECIAL_TOKENS)) > n_rows:
        raise ConfigError(f"{path}: has {n_rows:,} ids, but --tokenizer {n_ids:,}: it is another.")
    return Imported(shape, weights, tokenizer)


def _read_nanogpt(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return what a ckpt.pt holds; the weights stay in the file until they are read."""
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        sizes = {name: saved["model_args"][name] for name in SIZES}
        switches = {"mlp": "gelu_erf", "bias": saved["model_args"]["bias"]}
        found = {name.removeprefix("_orig_mod."): each for name, each in saved["model"].items()}
        weights = {
            name.removeprefix("transformer."): tensor.float()
            for name, tensor in found.items()
            if not name.endswith(IGNORED)
        }
        _ = weights["wte.weight"]
    except (OSError, RuntimeError, pickle.UnpicklingError, *BAD_CONTENT) as error:
        raise CheckpointError(
            f"{path}: not as nanoGPT saves a ckpt.pt, or damaged, or it would run code when it is "
            f"loaded, which it was not ({type(error).__name__})."
        ) from error
    return ModelConfig(**ARCHITECTURES["gpt2"] | sizes | switches), weights


def _read_llmc(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return what a .bin holds: each kind of tensor of all layers, then that of the next kind."""
    with path.open("rb") as file:
        header = np.fromfile(file, "<i4", HEADER_BYTES // 4).tolist() + [0] * 8
        version, T, V, n_layer, n_head, C, n_rows = header[1:8]  # noqa: N806
        if version not in LLMC_DTYPES:
            raise CheckpointError(
                f"{path}: of llm.c's version {version}; read are 3 (float32) and 5 (bfloat16)."
            )
        dtype = LLMC_DTYPES[version]
        n_numbers = C * (n_rows + T + n_layer * (12 * C + 13) + 2)
        size_bytes, promised = path.stat().st_size, HEADER_BYTES + n_numbers * dtype.itemsize
        if size_bytes != promised or min(header[2:8]) < 1 or n_rows < V:
            raise CheckpointError(
                f"{path}: {size_bytes:,} bytes, but its header, of {n_layer} layers of {C} channels"
                f", promises {promised:,}: it was cut short or is damaged. Fetch it again."
            )
        sizes = dict(zip(SIZES, (T, n_layer, n_head, C, V), strict=True))
        shape = ModelConfig(**ARCHITECTURES["gpt2"] | sizes)
        with SkipInit():
            weights = GPT(ModelConfig(**vars(shape) | {"pad_vocab": n_rows})).state_dict()
        kinds = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        both = [f"{kind}.{of}" for kind in kinds for of in ("weight", "bias")]
        of_layers = [f"h.{layer}.{name}" for name in both for layer in range(n_layer)]
        for name in ("wte.weight", "wpe.weight", *of_layers, "ln_f.weight", "ln_f.bias"):
            numbers = np.fromfile(file, f"<i{dtype.itemsize}", weights[name].numel())
            weights[name].copy_(torch.from_numpy(numbers).view(dtype).view_as(weights[name]))
    return shape, weights


class _PlainUnpickler(pickle.Unpickler):  # noqa: S301
    """Reads numbers, texts, lists and dictionaries; whatever else would be named is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, which would run")


def tokenizer_named(name: str) -> Tokenizer:
    """Return the vocabulary of a meta.pkl, a data folder or a run, or tiktoken's of this name."""
    path = Path(name)
    if path.is_file():
        return _read_meta(path)
    if (path / META_NAME).is_file():
        return open_data(path).tokenizer()
    if (path / run_dir.CONFIG_NAME).is_file():
        folder = newest_valid(path, "best")
        described = run_dir.read_json(folder / run_dir.STATE_NAME)["tokenizer"]
        return load_tokenizer(folder, described)
    return tiktoken_tokenizer(name)


def _read_meta(path: Path) -> CharTokenizer:
    try:
        with path.open("rb") as file:
            itos = _PlainUnpickler(file).load()["itos"]
        characters = tuple(itos[i] for i in range(len(itos)))
        if not all(isinstance(each, str) and len(each) == 1 for each in characters):
            raise ValueError("what it lists are no characters")
    except Exception as error:  # whatever a pickle that is none may raise
        raise DataError(
            f"{path}: not a meta.pkl of nanoGPT, whose itos says which character an id is "
            f"({type(error).__name__}: {error}). Nothing in it was run."
        ) from error
    return CharTokenizer(characters)
