"""--tokenizer: the vocabulary of a data folder, a run, a checkpoint, or of a file in these."""

import json
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.run_dir import CONFIG_NAME, STATE_NAME, checkpoints, read_pointer

META_NAME = "meta.json"  # of a data folder; its module imports numpy
NAMES = {  # of vocabularies, though there be a folder of that name
    *("bpe", "char", "gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base"),
    "o200k_harmony",
}
Described = tuple[Path, dict[str, Any]]  # a folder, and its JSON that describes the vocabulary


def described_vocabulary(name: str) -> Described | None:
    """Return where the vocabulary ``name`` lies, or None where it is not in a folder of ours."""
    if name in NAMES:
        return None
    path = Path(name)
    if path.is_file():
        described = _described(path.parent)
        is_its = described is not None and described[1]["tokenizer"]["file"] == path.name
        return described if is_its else None
    folders = [path]
    if (path / CONFIG_NAME).is_file():
        latest = read_pointer(path, "latest")
        folders = [*([latest] if latest else []), *reversed(checkpoints(path))]
    return next(filter(None, map(_described, folders)), None)


def _described(folder: Path) -> Described | None:
    for name in (META_NAME, STATE_NAME):
        try:
            described = json.loads((folder / name).read_bytes())
            if (folder / described["tokenizer"]["file"]).is_file():
                return folder, described
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def vocabulary_file(name: str) -> Path | None:
    """Return the file of a vocabulary that is no published one."""
    if described := described_vocabulary(name):
        return described[0] / str(described[1]["tokenizer"]["file"])
    return Path(name) if Path(name).is_file() else None


def check_out(out: Path, tokenizer: str, *, is_chats: bool) -> None:
    """Raise DataError where what is written would replace a run, or conversations their base."""
    why = ""
    if any((out / name).is_file() for name in (CONFIG_NAME, STATE_NAME)):
        why = "a run, not a data folder"
    described = described_vocabulary(tokenizer) if is_chats else None
    if not why and described and described[0].resolve() == out.resolve():
        why = "--out, and its vocabulary is taken: conversations would replace what is there"
    if why:
        raise DataError(f"{out}: is {why}. Choose another --out.")


def block_size_of(name: str) -> int | None:
    """Return the context of the run or checkpoint that ``name`` is."""
    described = described_vocabulary(name)
    return described[1].get("model", {}).get("block_size") if described else None
