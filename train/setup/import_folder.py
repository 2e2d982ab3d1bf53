"""What others trained -> a run, from whose weights training begins or that talks.

    config.json, model.safetensors or its shards, tokenizer.json  ->  runs/NAME/step-00000000/
    ckpt.pt   nanoGPT's torch.save of model, model_args and more; no vocabulary, but data/*/meta.pkl
    .bin      llm.c's 256 int32, then all tensors in float32 or bfloat16; GPT-2's vocabulary

Nothing in it is executed: a pickle that would name a class or a function is refused, and what no
switch of ours expresses is refused by its name. Sources: nanoGPT, train.py and
data/shakespeare_char/prepare.py, whose GELU is the exact one since 2023; llm.c, train_gpt2.py,
write_model.
"""

import json
import logging
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from common import run_dir, tokenizer
from common.chat_format import CHAT_TEMPLATE, TEMPLATE_NAME
from common.checkpoint import SkipInit, save_checkpoint
from common.dataset import META_NAME
from common.errors import CheckpointError, ConfigError, explained
from common.files import unfinished_folder, write_json
from common.huggingface.network import CONFIG_NAME, GPT2_LAYER, model_config, weights_of
from common.huggingface.tokenizer_json import TOKENIZER_NAME, read_tokenizer
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import SPECIAL_TOKENS, Tokenizer
from train.config import TrainConfig, TrainPlan, saved_settings

log = logging.getLogger(__name__)

DAMAGED = "It is damaged, cut short, or of another kind."
# How it goes on if it is resumed: a network that has learned takes a tenth of a new one's rate.
CONFIG = TrainConfig(learning_rate=1e-4)
PLAN = TrainPlan(max_steps=1_000, batch_size=1, eval_interval=100, save_interval=100, compile="off")
SHARDS = "model*.safetensors"  # one file, or several
MOST_PADDING = 128  # rows without an id, for speed
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


def import_folder(source: str | Path, runs_dir: Path, name: str, tokenizer: str = "") -> Path:
    """Make a run called ``name`` of the network and the vocabulary in ``source``; return it.

    A folder, a file of nanoGPT's or llm.c's, or the name of a repository on Hugging Face's hub.
    Raises CheckpointError, ConfigError or DataError, and makes no run, where one is not to be had.
    """
    run_dir.check_name(name)
    with explained(f"--tokenizer {tokenizer}: cannot be imported", DAMAGED):
        given = named_tokenizer(tokenizer) if tokenizer else None
    with explained(f"{source}: cannot be imported", DAMAGED):
        model, found = _read(source, given)
    place = Path(source).resolve() if Path(source).exists() else source
    settings = {
        "format": run_dir.RUN_VERSION, "imported_from": str(place),
        "model": asdict(model.config), "train": saved_settings(CONFIG, PLAN),
    }  # fmt: skip
    stepper = {"batch_size": PLAN.batch_size, "loss_scale": 0.0, "n_unscaled": 0}
    state = {"progress": {"step": 0, "n_tokens": 0}, "stepper": stepper}
    ids, template = found.tokenizer, found.chat_template
    with unfinished_folder(runs_dir / name) as run:
        folder = save_checkpoint(run, 0, model, {}, state, ids, chat_template=template)
        run_dir.write_pointer(run, "best", folder)
        write_json(run / run_dir.CONFIG_NAME, settings)
        run = run.rename(run_dir.new_run(runs_dir, name))  # in the place of an empty folder
    log.info("%s: of %s. Talk to it: python -m sample chat %s", run, source, run.name)
    return run


def _read(source: str | Path, given: Tokenizer | None) -> tuple[GPT, Imported]:
    """Return the network there with rows for all ids, as many as it had or more, and its parts."""
    path = Path(source)
    if not path.exists() and str(source).count("/") == 1:
        from huggingface_hub import snapshot_download

        needed = [CONFIG_NAME, SHARDS, TOKENIZER_NAME, TEMPLATE_NAME]
        path = Path(snapshot_download(str(source), allow_patterns=needed))
    found = _read_file(path, given) if path.is_file() else _read_folder(path, given)
    n_ids, n_rows = found.tokenizer.vocab_size, len(found.weights["wte.weight"])
    n_ordinary = n_ids - len(SPECIAL_TOKENS)
    if given and not n_ordinary <= n_rows < n_ordinary + MOST_PADDING:
        raise ConfigError(
            f"{source}: has rows for {n_rows:,} ids, but --tokenizer {n_ordinary:,}: it is another."
        )
    if n_ids > n_rows:
        log.info("vocabulary  with %d ids more, each as the mean of all", n_ids - n_rows)
        for key in {"wte.weight", "lm_head.weight"} & found.weights.keys():
            rows = found.weights[key]
            found.weights[key] = torch.cat((rows, rows.mean(0, True).expand(n_ids - n_rows, -1)))
    pad = n_rows if n_rows > n_ids else 1  # rows without a token stay, as padding
    with SkipInit():
        model = GPT(replace(found.shape, vocab_size=n_ids, pad_vocab=pad))
    model.load_state_dict(found.weights, assign=True)
    return model, found


def _read_folder(source: Path, given: Tokenizer | None) -> Imported:
    """Return the network of a folder of transformers', with the ``given`` ids or its own."""
    said = json.loads((source / CONFIG_NAME).read_bytes())
    shape = model_config(said, str(source / CONFIG_NAME))
    end = said.get("eos_token_id")  # one, or a list
    end = end[0] if isinstance(end, list) else end
    with explained(f"{source / TOKENIZER_NAME}: cannot be imported", DAMAGED):
        ids = given or read_tokenizer(source / TOKENIZER_NAME, end)
    path = source / TEMPLATE_NAME
    is_chat = path.exists() and path.read_text("utf-8", "replace") == CHAT_TEMPLATE
    if not is_chat:
        log.info("It continues texts: no chat format but this program's own is taken over.")
    return Imported(shape, _read_weights(source, shape), ids, CHAT_TEMPLATE if is_chat else None)


def _read_weights(source: Path, shape: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors in float32, made of those there."""
    place: dict[str, tuple[str, str]] = {}  # where each is, under its name in the whole network
    for path in map(str, sorted(source.glob(SHARDS))):
        with safe_open(path, framework="pt") as file:
            place |= {key.removeprefix("transformer."): (path, key) for key in file.offset_keys()}
    with SkipInit():
        ours = GPT(shape).state_dict()
    for weight in weights_of(shape):
        name = weight.name.removeprefix("transformer.")
        if name not in place:
            raise CheckpointError(f"{source}: lacks {weight.name} in {SHARDS}.")
        path, key = place.pop(name)
        here = weight.of(ours[weight.source])
        is_gate = shape.mlp == "relu2" and "gate_proj" in name  # up_proj, its equal, came before
        is_known = weight.is_zero or is_gate
        with safe_open(path, framework="pt") as file:  # mapped anew, so that none stays in memory
            there: Tensor = file.get_tensor(key)
            if there.shape != here.shape or (is_known and not torch.equal(there.float(), here)):
                same = f", {'the same as up_proj' if is_gate else '0'}" if is_known else ""
                raise ConfigError(
                    f"{source}: {weight.name}, {[*there.shape]}, does not fit its config.json, by "
                    f"which it is {[*here.shape]}{same}."
                )
            here.copy_(there)
    if others := [n for n in sorted(place) if not n.endswith(("lm_head.weight", *MASKS))]:
        raise ConfigError(f"{source}: holds {others[0]}, for which Quern's networks have no place.")
    return ours


def _read_file(path: Path, given: Tokenizer | None) -> Imported:
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
    if names := get_unsafe_globals_in_checkpoint(path):
        raise ValueError(f"it names {', '.join(names)}, which would run, and was not run")
    saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    args = {name: saved["model_args"][name] for name in (*SIZES, "bias")} | {"mlp": "gelu_erf"}
    weights = {
        name.removeprefix("_orig_mod.").removeprefix("transformer."): tensor.float()
        for name, tensor in saved["model"].items()
        if not name.endswith(MASKS)
    }
    # the embedding once more, unless somebody changed that
    if is_tied := torch.equal(weights["lm_head.weight"], weights["wte.weight"]):
        del weights["lm_head.weight"]
    return ModelConfig(**ARCHITECTURES["gpt2"] | args | {"tied_head": is_tied}), weights


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
