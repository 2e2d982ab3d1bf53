"""Whether data, settings and checkpoint belong together: asked before anything is written."""

import logging
from pathlib import Path
from typing import Any

from common import run_dir
from common.checkpoint import MANIFEST_NAME
from common.dataset import SPLITS, DataFolder
from common.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# Settings that no weight depends on: they may be others whenever a run goes on.
FREE = {
    "batch_size", "shard", "compile", "activation_checkpointing", "log_interval", "save_interval",
    "eval_interval", "eval_tokens", "keep", "patience", "target_loss", "max_bad_steps", "tracker",
}  # fmt: skip


def check_sizes(data: DataFolder, block_size: int) -> None:
    """Raise DataError where a split has not even one window."""
    for split in SPLITS:
        # opened here for the whole run, whatever takes the files' place meanwhile
        path, n_tokens = data.path / f"{split}.bin", len(data.tokens(split))
        if not n_tokens:
            raise DataError(
                f"{path}: is empty: no document was put there. Prepare the text again with "
                "another --val-fraction or --seed, or other --val-files; few documents may all "
                "go the same way."
            )
        if n_tokens < block_size + 1 and not data.has_masks:
            remedy = f"pass --block-size {n_tokens - 1} or less, or " if n_tokens > 1 else ""
            raise DataError(
                f"{path}: holds {n_tokens:,} tokens, but --block-size {block_size} needs "
                f"{block_size + 1:,}: {remedy}prepare more text."
            )


def check_vocabulary(data: DataFolder, saved: Path, state: dict[str, Any]) -> None:
    """Raise DataError where ids mean other text than in the checkpoint ``saved``."""
    name = state["tokenizer"]["file"]
    manifest = run_dir.read_json(saved / MANIFEST_NAME)
    if manifest["files"][name]["sha256"] != data.vocabulary_sha256:
        remedy = f"text SRC --tokenizer {saved / name}"
        if data.has_masks:
            remedy = f"chats FILE --tokenizer {saved}"
        raise DataError(
            f"{data.path}: its vocabulary is not the one of {saved}: the same ids stand for other "
            f"text. Prepare it with that vocabulary: python -m prepare {remedy}"
        )


def check_unchanged(
    data: DataFolder, saved: Path, state: dict[str, Any], *, allow_change: bool
) -> None:
    """Raise DataError where the checkpoint ``saved`` was trained on other data, or warn."""
    if (trained_on := state.get("data_sha256")) in (None, data.sha256):  # None: of an import
        return
    was = f"{data.path}: SHA-256 {data.sha256[:12]}, but {saved} was trained on {trained_on[:12]}"
    if not allow_change:
        raise DataError(
            f"{was}: the data changed since. Prepare it as it was, or train a new run. "
            "--allow-data-change goes on with the data as it is."
        )
    log.warning("%s: going on with other data, as allowed", was)


def check_settings(
    settings: dict[str, Any], saved: Path, state: dict[str, Any], data: Path | None
) -> None:
    """Raise ConfigError where a run's config.json is not what its checkpoint was trained with.

    Or where it names no data, as that of an import, and none is given; or has no plan to go on by.
    """
    run = saved.parent
    if "stepper" not in state:  # imports before those that can be resumed
        raise ConfigError(
            f"{run}: was imported by an earlier version, without a plan for its training. Begin "
            f"from its weights: python -m train pretrain --init-from {run.name}, or import it anew."
        )
    if data is None and "data" not in settings:
        raise ConfigError(
            f"{run}: was imported, and has learned nothing here yet. Say from what, and how long: "
            f"python -m train resume {run.name} --data DATA --minutes 10, after python -m prepare "
            f"text SOURCES --tokenizer {run} --out DATA"
        )
    found = settings["model"] | settings["train"]
    # of a longer run that was stopped before it saved anew
    if lengths := [
        c["max_steps"] for c in settings.get("changes", []) if c["step"] >= state["step"]
    ]:
        found["max_steps"] = lengths[0]
    for name, value in (state["model"] | state.get("train", {})).items():
        if name not in FREE and found.get(name) != value:
            raise ConfigError(
                f"{saved.parent / run_dir.CONFIG_NAME}: {name} is {found.get(name)}, but {saved} "
                f"was trained with {value}: what a run learns by stays as it began. Put it back, "
                "or train a new run from these weights: python -m train pretrain --init-from "
                f"{saved.parent.name}"
            )
