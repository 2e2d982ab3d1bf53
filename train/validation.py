"""What settings, data and weights must have in common before a run begins or goes on."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.checkpoint import MANIFEST_NAME
from common.dataset import SPLITS, DataFolder
from common.errors import ConfigError, DataError
from common.models.config import ModelConfig
from common.run_dir import read_json

log = logging.getLogger(__name__)

# Settings of a network that its weights do not depend on.
FREE = {"dropout", "ngram_dropout", "attention"}


def check_sizes(data: DataFolder, block_size: int) -> None:
    """Raise DataError where a split has not even one window."""
    for split in SPLITS:
        n_tokens = data.n_tokens(split)
        if not n_tokens:
            raise DataError(
                f"{data.path / split}.bin: is empty: no document was put there. Prepare the "
                "text again with another --val-fraction, or other --val-files."
            )
        if n_tokens < block_size + 1:
            remedy = f"pass --block-size {n_tokens - 1} or less, or " if n_tokens > 1 else ""
            raise DataError(
                f"{data.path / split}.bin: holds {n_tokens:,} tokens, but --block-size "
                f"{block_size} needs {block_size + 1:,}: {remedy}prepare more text."
            )


def check_vocabulary(data: DataFolder, saved: Path, state: dict[str, Any]) -> None:
    """Raise DataError where ids mean other text than in the checkpoint ``saved``."""
    name = state["tokenizer"]["file"]
    manifest = read_json(saved / MANIFEST_NAME)
    if manifest["files"][name]["sha256"] != data.vocabulary_sha256:
        raise DataError(
            f"{data.path}: its vocabulary is not the one of {saved}: the same ids stand for other "
            "text. Prepare it with that vocabulary: python -m prepare text SRC --tokenizer "
            f"{saved / name}"
        )


def check_same_data(data: DataFolder, saved: Path, sha256: str, *, may_differ: bool) -> None:
    """Raise DataError where the data is not what ``saved`` was trained on and may not be."""
    if data.sha256 == sha256:
        return
    was = f"SHA-256 {data.sha256[:12]}, but {saved} was trained on {sha256[:12]}"
    if not may_differ:
        raise DataError(
            f"{data.path}: {was}: the data changed since. Prepare it as it was, or train "
            "a new run. --allow-data-change goes on with the data as it is."
        )
    log.warning("%s: %s: going on with other data, as allowed", data.path, was)


def check_shape(saved: Path, shape: ModelConfig, options: dict[str, Any]) -> None:
    """Raise ConfigError where the weights in ``saved``, of ``shape``, rule out an option."""
    free = FREE if shape.positions == "learned" else FREE | {"block_size"}
    for item in fields(ModelConfig):
        trained = getattr(shape, item.name)
        given = options.get(item.name, trained)
        if item.name not in free and given != trained:
            raise ConfigError(
                f"--{item.name.replace('_', '-')} is {given}, but the weights of {saved} were "
                f"trained with {trained}: leave it out, or leave out --init-from."
            )
