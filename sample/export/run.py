"""A run -> a folder in Hugging Face's layout, or another format; whole or not there.

Weights are read from the checkpoint's file as they are written, and are in memory once.
"""

import json
from pathlib import Path
from typing import Any

from common.chat_format import END_OF_MESSAGE, TEMPLATE_NAME, end_ids
from common.checkpoint import MODEL_NAME, Checkpoint, load_checkpoint, newest_valid
from common.errors import ConfigError
from common.files import make_folder, whole_folder, write_json, write_text
from common.huggingface import network, tokenizer_json
from common.models.config import GenerateConfig
from common.run_dir import Pointer, find_run
from common.tokenizer import END_OF_TEXT
from sample.export import card, gguf
from sample.loaded_model import RunInfo, describe_run
from sample.weights_file import DTYPES, KNOWN, SUFFIX, write_tensors

SHARD_BYTES, ANY_SIZE = 5_000_000_000, 1 << 62  # of one file; the first as transformers has them
SUFFIXES = {"weights": SUFFIX, "gguf": gguf.SUFFIX}  # of formats that are one file
OTHER_DTYPES = {"gguf": gguf.DTYPES, "onnx": ("float32",)}


def export_run(name: str, out: Path, to: str, dtype: str, runs_dir: Path, which: Pointer) -> str:
    """Write a checkpoint of a run to ``out``; return what was written, in words.

    Raises ConfigError where ``out`` is there, or where the network fits no class of transformers'.
    """
    files = [out, out.with_suffix(gguf.MODELFILE_SUFFIX)] if to == "gguf" else [out]
    for path in files:
        if path.exists():
            raise ConfigError(f"{path}: is there already. Name another place, or delete it first.")
    if to in SUFFIXES and out.suffix != SUFFIXES[to]:
        raise ConfigError(f"{out}: such a file is known by its name: end it in {SUFFIXES[to]}.")
    if dtype not in (dtypes := OTHER_DTYPES.get(to, DTYPES)):
        raise ConfigError(f"--dtype is {dtype}, but --to {to} takes {', '.join(dtypes)}.")
    folder = newest_valid(find_run(runs_dir, name), which, skip_optimizer=True)
    loaded = load_checkpoint(folder, mapped=True)
    info = describe_run(folder, loaded)
    if to != "onnx":
        loaded.model.to("meta")  # its weights are read from the file anew, a tensor at a time
    make_folder(out.parent)
    write = {"hf": write_folder, "gguf": gguf.write_gguf, "onnx": write_onnx}.get(to, write_weights)
    return f"{out}: {dtype}, of {folder}. {write(loaded, info, out, dtype)}"


def write_weights(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write one file from which sample runs: weights as we name them, the rest as metadata."""
    kept = ("format", "step", "saved_at", "model", "tokenizer")
    said = {
        "state": {key: loaded.state[key] for key in kept},
        "vocabulary": loaded.tokenizer.file_content.decode("utf-8"),
        "chat_template": loaded.chat_template,
        "info": {key: getattr(info, key) for key in KNOWN},
    }
    weights = [network.Weight(name, name) for name in loaded.model.state_dict()]
    source = info.folder / MODEL_NAME
    with whole_folder(path, only=MODEL_NAME) as folder:
        write_tensors(folder, source, weights, dtype, ANY_SIZE, json.dumps(said))
    return f"Talk to it: python -m sample chat {path}"


def write_onnx(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write a folder that onnxruntime and transformers.js load."""
    from sample.export import onnx  # it imports PyTorch's exporter, which takes seconds

    with whole_folder(path) as folder:
        onnx.write_onnx(loaded.model, info.folder / MODEL_NAME, folder)
        write_settings(loaded, info, folder, onnx.settings_of(info.config), dtype)
    return f"The graph is {onnx.NAME}, its weights {onnx.DATA_NAME}."


def write_folder(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write a folder that transformers' Auto classes load."""
    settings = network.config_json(info.config)
    kind = settings["architectures"][0]
    source, weights = info.folder / MODEL_NAME, network.weights_of(info.config)
    with whole_folder(path) as folder:
        write_tensors(folder, source, weights, dtype, SHARD_BYTES, "")
        write_settings(loaded, info, folder, settings, dtype)
        if info.config.ngrams:
            code = Path(__file__).with_name(network.CODE_NAME).read_text("utf-8")
            write_text(folder / network.CODE_NAME, code)
        said = card.model_card(info, kind, loaded.tokenizer.special_tokens, path.name)
        write_text(folder / "README.md", said)
    code = f" Load it with trust_remote_code=True, which runs {path / network.CODE_NAME}."
    return f"Network: {kind}.{code if info.config.ngrams else ''}"


def write_settings(
    loaded: Checkpoint, info: RunInfo, folder: Path, settings: dict[str, Any], dtype: str
) -> None:
    """Write config.json of ``settings``, how it is sampled from, its vocabulary and template."""
    tokenizer, eot_id, d = loaded.tokenizer, loaded.tokenizer.eot_id, GenerateConfig()
    ids = {"bos_token_id": eot_id, "eos_token_id": end_ids(tokenizer) if info.is_chat else [eot_id]}
    dtypes = {"dtype": dtype, "torch_dtype": dtype}  # of transformers 5, and 4
    write_json(folder / network.CONFIG_NAME, settings | ids | dtypes)
    chosen = {"do_sample": True, "temperature": d.temperature, "top_p": d.top_p, "top_k": d.top_k}
    write_json(folder / "generation_config.json", ids | chosen | {"pad_token_id": eot_id})
    write_json(folder / tokenizer_json.TOKENIZER_NAME, tokenizer_json.tokenizer_json(tokenizer))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": info.config.block_size,
        "clean_up_tokenization_spaces": False, "bos_token": END_OF_TEXT, "pad_token": END_OF_TEXT,
        "eos_token": END_OF_MESSAGE if info.is_chat else END_OF_TEXT,
    }  # fmt: skip
    write_json(folder / tokenizer_json.TOKENIZER_CONFIG_NAME, described)
    if loaded.chat_template is not None:
        write_text(folder / TEMPLATE_NAME, loaded.chat_template)
