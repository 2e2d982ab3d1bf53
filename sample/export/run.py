"""A run -> a folder in Hugging Face's layout, or one file of weights; whole or not there.

Weights stay in the checkpoint's file, and go from there into the new one a tensor at a time.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch

from common.chat_format import END_OF_MESSAGE, TEMPLATE_NAME, end_ids
from common.checkpoint import MODEL_NAME, Checkpoint, load_checkpoint, newest_valid
from common.errors import ConfigError
from common.files import fsync, make_folder, write_json, write_text
from common.huggingface.network import (
    CODE_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    Weight,
    check_stock,
    config_json,
    weights_of,
)
from common.huggingface.tokenizer_json import (
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    tokenizer_json,
)
from common.models.config import GenerateConfig
from common.run_dir import Pointer, find_run
from common.tokenizer import END_OF_TEXT
from sample.export.card import model_card
from sample.loaded_model import RunInfo, describe_run
from sample.weights_file import METADATA_KEY, SUFFIX, TensorToWrite, tensors_of, write_tensors

SHARD_BYTES = 5_000_000_000  # of one file, as transformers divides them
KNOWN = ("step", "n_tokens", "n_base_tokens", "val_loss", "val_bpb")  # of a RunInfo


def export_run(name: str, out: Path, to: str, dtype: str, runs_dir: Path, which: Pointer) -> str:
    """Write a checkpoint of a run to ``out``; return what was written, in words.

    Raises ConfigError where ``out`` is there, or where the network fits no class of transformers'.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already. Name another place, or delete it first.")
    if to == "weights" and out.suffix != SUFFIX:
        raise ConfigError(f"{out}: weights are known by their name: end it in {SUFFIX}.")
    folder = newest_valid(find_run(runs_dir, name), which, skip_optimizer=True)
    loaded = load_checkpoint(folder, torch.device("cpu"), mapped=True)
    info = describe_run(folder, loaded)
    if to == "weights":
        make_folder(out.parent)
        write_weights(loaded, info, out, dtype)
        return f"{out}: {dtype}, of {folder}. Talk to it: python -m sample chat {out}"
    check_stock(info.config)
    unfinished = out.with_name(f".{out.name}.unfinished")  # no name that a person gives
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        write_folder(loaded, info, unfinished, dtype, called=out.name)
        os.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync(out.parent)
    kind = config_json(info.config)["architectures"][0]
    code = f"; load it with trust_remote_code=True, which runs {out / CODE_NAME}"
    return f"{out}: {kind}, {dtype}, of {folder}{code if info.config.ngrams else ''}."


def write_weights(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> None:
    """Write one file from which sample runs: weights as we name them, the rest as metadata."""
    tokenizer, kept = loaded.tokenizer, ("format", "step", "saved_at", "model", "tokenizer")
    said = {
        "state": {key: loaded.state[key] for key in kept},
        "vocabulary": tokenizer.file_content.decode("utf-8"),
        "chat_template": loaded.chat_template,
        "info": {key: getattr(info, key) for key in KNOWN},
    }
    source = info.folder / MODEL_NAME
    names = [Weight(name, name) for name in loaded.model.state_dict()]
    write_tensors(path, tensors_of(source, names), dtype, {METADATA_KEY: json.dumps(said)})


def write_folder(
    loaded: Checkpoint, info: RunInfo, folder: Path, dtype: str, *, called: str
) -> None:
    """Write a folder, to be ``called`` otherwise, that transformers' Auto classes load."""
    config, tokenizer = info.config, loaded.tokenizer
    settings = config_json(config)
    ends = end_ids(tokenizer) if info.is_chat else [tokenizer.eot_id]
    ids = {"bos_token_id": tokenizer.eot_id, "eos_token_id": ends, "pad_token_id": tokenizer.eot_id}
    write_json(
        folder / CONFIG_NAME,
        settings | {"bos_token_id": tokenizer.eot_id, "eos_token_id": ends, "dtype": dtype}
        | {"torch_dtype": dtype},  # as transformers 4 calls it
    )  # fmt: skip
    sampling = asdict(GenerateConfig())
    sampling = {key: sampling[key] for key in ("temperature", "top_p", "top_k")}
    write_json(folder / "generation_config.json", {**ids, "do_sample": True, **sampling})
    write_json(folder / TOKENIZER_NAME, tokenizer_json(tokenizer))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "clean_up_tokenization_spaces": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_MESSAGE if info.is_chat else END_OF_TEXT,
        "pad_token": END_OF_TEXT,
    }
    write_json(folder / TOKENIZER_CONFIG_NAME, described)
    if loaded.chat_template is not None:
        write_text(folder / TEMPLATE_NAME, loaded.chat_template)
    if config.ngrams:
        write_text(folder / CODE_NAME, Path(__file__).with_name(CODE_NAME).read_text("utf-8"))
    kind, special = settings["architectures"][0], list(tokenizer.special_tokens)
    card = model_card(info, kind, special, called, needs_code=config.ngrams > 0)
    write_text(folder / "README.md", card)
    _write_shards(tensors_of(info.folder / MODEL_NAME, weights_of(config)), folder, dtype)


def _write_shards(tensors: list[TensorToWrite], folder: Path, dtype: str) -> None:
    """Write model.safetensors or, of more than SHARD_BYTES, several and their index."""
    shards: list[list[TensorToWrite]] = [[]]
    n_total = n_shard = 0
    for tensor in tensors:
        n_bytes = tensor.n_numbers * getattr(torch, dtype).itemsize
        if shards[-1] and n_shard + n_bytes > SHARD_BYTES:
            shards.append([])
            n_shard = 0
        shards[-1].append(tensor)
        n_shard, n_total = n_shard + n_bytes, n_total + n_bytes
    if len(shards) == 1:
        write_tensors(folder / MODEL_NAME, tensors, dtype, {})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}{SUFFIX}"
        write_tensors(folder / name, shard, dtype, {})
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": n_total}, "weight_map": weight_map}
    write_json(folder / INDEX_NAME, index)
