"""Finished files -> a data folder: all of them or none, also where it is stopped on the way."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from common.chat_format import TEMPLATE_NAME
from common.dataset import (
    FORMAT_VERSION,
    META_NAME,
    REPLACED_PATH,
    SPLITS,
    meta_sha256,
    open_data,
)
from common.errors import DataError
from common.files import fsync, sha256_of, write_json
from common.tokenizer import Tokenizer, describe_tokenizer, save_tokenizer

CHAT_FILES = {TEMPLATE_NAME, *(f"{split}.mask" for split in SPLITS)}
REPLACED_NAME = REPLACED_PATH.parent.name
Files = dict[str, Path]  # flushed to disk, by the names that wait for them in the data folder


def commit(
    folder: Path, work: Path, files: Files, tokenizer: Tokenizer, meta: dict[str, Any]
) -> dict[str, Any]:
    """Move finished files and the vocabulary to ``folder``, then meta.json: now it is a data set.

    Where that fails, the data set that was there is as it was. Until ``work``, which is of the same
    file system, is deleted, it lies there: after a kill restore() puts it back. Returns meta.json.
    """
    staged, replaced = work / "staged", work / REPLACED_NAME
    staged.mkdir(exist_ok=True)
    replaced.mkdir(exist_ok=True)
    save_tokenizer(tokenizer, staged)
    new = {**files, tokenizer.file_name: staged / tokenizer.file_name}
    whole = {
        "format": FORMAT_VERSION,
        "tokenizer": describe_tokenizer(tokenizer),
        "files": {
            name: {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in new.items()
        },
        **meta,
    }
    whole["meta_sha256"] = meta_sha256(whole)
    write_json(staged / META_NAME, whole)
    new[META_NAME] = staged / META_NAME
    moved: list[tuple[Path, Path]] = []

    def move(path: Path, target: Path) -> None:
        os.replace(path, target)
        moved.append((path, target))

    try:
        for path in (work, folder):  # a power cut must not take the folder that old files move to
            fsync(path)
        for name in [META_NAME, *(_old_others(folder) | new.keys()) - {META_NAME}]:
            if (folder / name).is_file():
                move(folder / name, replaced / name)
        fsync(folder)
        for name, path in new.items():
            if name == META_NAME:
                fsync(folder)
            move(path, folder / name)
    except BaseException:
        for path, target in reversed(moved):
            os.replace(target, path)
        raise
    fsync(folder)
    return whole


def restore(folder: Path, work: Path) -> None:
    """Put back the data set that a commit was replacing when it was killed.

    Nothing new is moved in before all that was old is safe in ``work``, and the new meta.json comes
    last: where ``folder`` opens, it is one data set, the old or the new, whole.
    """
    replaced = work / REPLACED_NAME
    if not replaced.is_dir():
        return
    with suppress(DataError):
        open_data(folder)
        shutil.rmtree(replaced)
        return
    for path in sorted(replaced.iterdir(), key=lambda path: path.name == META_NAME):
        if path.name == META_NAME:
            fsync(folder)
        os.replace(path, folder / path.name)
    fsync(folder)
    replaced.rmdir()


def _old_others(folder: Path) -> set[str]:
    """Return the files of the data set that is there which a new one may lack: nobody else's."""
    try:
        old = json.loads((folder / META_NAME).read_bytes())["files"]
        return ({tokenizer.file_name for tokenizer in get_args(Tokenizer)} | CHAT_FILES) & set(old)
    except (OSError, ValueError, KeyError, TypeError):
        return set()
