"""A run -> a folder in Hugging Face's layout, or another format; whole or not there; to the Hub.

Weights are read from the checkpoint's file as they are written, and are in memory once. A folder
has a model card: card.md, a template in Jinja, with what is known of the run.
Source: https://huggingface.co/docs/hub/model-cards
"""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub as hub  # it imports what is asked of it, 8 MB for a card, at its first use
from safetensors.torch import save_file
from torch import Tensor

from common.chat_format import END_OF_MESSAGE, TEMPLATE_NAME, end_ids
from common.checkpoint import MODEL_NAME, Checkpoint, load_checkpoint, newest_valid
from common.dataset import open_data
from common.errors import ConfigError, DataError, explained
from common.files import make_folder, whole_folder, write_json, write_text
from common.huggingface import network, tokenizer_json
from common.models.config import GenerateConfig
from common.run_dir import CONFIG_NAME, Pointer, find_run, read_json, read_metrics
from common.tokenizer import END_OF_TEXT
from sample.export import gguf
from sample.loaded_model import RunInfo, describe_run, undertrained_warning
from sample.weights_file import DTYPES, KNOWN, METADATA_KEY, SUFFIX, read_tensors

SUFFIXES = {"weights": SUFFIX, "gguf": gguf.SUFFIX}  # of formats that are one file
MOST_LOSSES = 12  # lines of its table
OTHER_DTYPES = {"gguf": gguf.DTYPES, "onnx": ("float32",)}


def export_run(name: str, out: Path, to: str, dtype: str, runs_dir: Path, which: Pointer) -> str:
    """Write a checkpoint of a run to ``out``; return what was written, in words.

    Raises ConfigError where ``out`` is there, or where the network fits no class of transformers'.
    """
    files = [out, out.with_suffix(gguf.MODELFILE_SUFFIX)] if to == "gguf" else [out]
    if path := next(filter(Path.exists, files), None):
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
    with explained(f"{out}: cannot be written"):
        return f"{out}: {dtype}, of {folder}. {write(loaded, info, out, dtype)}"


def write_weights(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write one file from which sample runs: weights as we name them, the rest as metadata."""
    said = {
        "state": {k: loaded.state[k] for k in ("format", "step", "saved_at", "model", "tokenizer")},
        "vocabulary": loaded.tokenizer.file_content.decode("utf-8"),
        "chat_template": loaded.chat_template,
        "info": {key: getattr(info, key) for key in KNOWN},
    }
    weights = [network.Weight(name, name) for name in loaded.model.state_dict()]
    tensors = read_tensors(info.folder / MODEL_NAME, weights, dtype)
    with whole_folder(path, only=MODEL_NAME) as folder:
        save_file(tensors, folder / MODEL_NAME, {"format": "pt", METADATA_KEY: json.dumps(said)})
    return f"Talk to it: python -m sample chat {path}"


def write_onnx(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write a folder that onnxruntime and transformers.js load."""
    from sample.export import onnx  # 9 MB

    settings: dict[str, Any] = {"model_type": "quern", "quern": asdict(info.config)}
    with suppress(ConfigError):  # of a network that transformers has none of
        settings = network.config_json(info.config)
    settings["transformers.js_config"] = {"use_external_data_format": True}
    settings.pop("auto_map", None)  # names code that the folder has not
    with whole_folder(path) as folder:
        write_settings(loaded, folder, settings, dtype)
        onnx.write_onnx(loaded.model, info.folder / MODEL_NAME, folder)
    return f"The graph is {onnx.NAME}, its weights {onnx.DATA_NAME}."


def write_folder(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write a folder that transformers' Auto classes load."""
    settings = network.config_json(info.config)
    kind = settings["architectures"][0]
    source, weights = info.folder / MODEL_NAME, network.weights_of(info.config)
    with whole_folder(path) as folder:
        # no name keeps in memory what is written
        write_shards(read_tensors(source, weights, dtype), folder)
        write_settings(loaded, folder, settings, dtype)
        if info.config.ngrams:
            code = Path(__file__).with_name(network.CODE_NAME).read_text("utf-8")
            write_text(folder / network.CODE_NAME, code)
        write_text(folder / "README.md", model_card(loaded, info, kind, path.name))
    code = f" Load it with trust_remote_code=True, which runs {path / network.CODE_NAME}."
    return f"Network: {kind}.{code if info.config.ngrams else ''}"


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors or, beyond 5 GB, several files and which tensor is in which.

    Hugging Face's own save_torch_state_dict imports PyTorch's DTensor: 43 MB more.
    """
    names = MODEL_NAME.replace(".", "{suffix}.")
    split = hub.split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda tensor: tensor.nbytes, filename_pattern=names
    )
    for name, within in split.filename_to_tensors.items():
        save_file({each: tensors[each] for each in within}, folder / name, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{MODEL_NAME}.index.json", index)


def write_settings(loaded: Checkpoint, folder: Path, settings: dict[str, Any], dtype: str) -> None:
    """Write config.json of ``settings``, how it is sampled from, its vocabulary and template."""
    tokenizer, c, template = loaded.tokenizer, loaded.model.config, loaded.chat_template
    eot_id, d = tokenizer.eot_id, GenerateConfig()
    ids = {"bos_token_id": eot_id, "eos_token_id": end_ids(tokenizer) if template else [eot_id]}
    dtypes = {"dtype": dtype, "torch_dtype": dtype}  # of transformers 5, and 4
    write_json(folder / network.CONFIG_NAME, settings | ids | dtypes)
    chosen = {"do_sample": True, "temperature": d.temperature, "top_p": d.top_p, "top_k": d.top_k}
    write_json(folder / "generation_config.json", ids | chosen | {"pad_token_id": eot_id})
    write_json(folder / tokenizer_json.TOKENIZER_NAME, tokenizer_json.tokenizer_json(tokenizer))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": c.block_size,
        "clean_up_tokenization_spaces": False, "bos_token": END_OF_TEXT, "pad_token": END_OF_TEXT,
        "eos_token": END_OF_MESSAGE if template else END_OF_TEXT,
    }  # fmt: skip
    write_json(folder / tokenizer_json.TOKENIZER_CONFIG_NAME, described)
    if template:
        write_text(folder / TEMPLATE_NAME, template)


def model_card(loaded: Checkpoint, info: RunInfo, kind: str, folder: str) -> str:
    """Return README.md of a run that is exported to ``folder`` as a network of class ``kind``."""
    settings = read_json(info.folder.parent / CONFIG_NAME)
    metrics = read_metrics(info.folder.parent)
    losses = [m for m in metrics if m.get("val_loss") is not None and m["step"] <= info.step]
    card = hub.ModelCard.from_template(
        hub.ModelCardData(
            library_name="transformers", pipeline_tag="text-generation", tags=["quern"]
        ),
        template_path=str(Path(__file__).with_name("card.md")),
        info=info, kind=kind, folder=folder, run=settings, splits=_splits(settings.get("data")),
        special=loaded.tokenizer.special_tokens, warning=undertrained_warning(info),
        # the context is the end of learned positions
        n_new=min(100, info.config.block_size // 2),
        # the last, and some before it
        losses=losses[:: -(len(losses) // MOST_LOSSES + 1)][::-1],
        settings=json.dumps({key: settings.get(key) for key in ("model", "train")}, indent=1),
    )  # fmt: skip
    return f"{card}\n"


def _splits(data: dict[str, Any] | None) -> dict[str, Any]:
    """Return the counts of what a run learned from; none where its folder holds it no more."""
    with suppress(DataError):
        if data and (found := open_data(Path(data["path"]))).sha256 == data["sha256"]:
            return dict(found.meta["splits"])
    return {}


def push_to_hub(out: Path, name: str) -> str:
    """Upload what was exported into the repository ``name``; return where it is, in words.

    A repository that is not there yet is made, and is private. Raises ConfigError where the Hub
    cannot be reached or refuses, or where nobody is logged in.
    """
    remedy = f"Once that is mended: hf auth login, then hf upload {name} {out} --private"
    with explained(f"{out}: is written, but was not uploaded to {name}", remedy, ConfigError):
        url = hub.create_repo(name, private=True, exist_ok=True)
        if out.is_dir():
            hub.upload_folder(repo_id=url.repo_id, folder_path=out)
        else:
            hub.upload_file(repo_id=url.repo_id, path_or_fileobj=out, path_in_repo=out.name)
    return f"{url}: {out.name} is there. A new repository is private: its page can change that."
