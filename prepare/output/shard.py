"""What the second pass wrote of a task: its shard of ids on disk, which is whole or not there.

KEY-train.bin, KEY-val.bin    ids in the order of the documents
KEY-train.mask, KEY-val.mask  of conversations: a byte for each id (common/chat_format.py)
KEY.names, KEY.runs           which file each document was in (names.py)
KEY.rows                      a row for each document (two where its end goes to val): see ROW
KEY.json                      the manifest, written last: without it there is no shard
"""

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from common.dataset import SPLITS, Split
from common.tokenizer import describe_tokenizer
from prepare.config import PrepareConfig
from prepare.sources.made_from import OUTPUT_VERSION, versions
from prepare.tokens.vocab_and_split import Plan
from prepare.workers.executor import Task, key_of

HASH = struct.Struct(">QQ")  # an XXH3 of 128 bits, as bytes
ROW = np.dtype(
    [
        ("n_tokens", "<i8"),  # the end-of-text id included
        ("n_bytes", "<i8"),
        ("hash", "<u8", 2),  # of the whole document: equal for equal ones
        ("source", "<i4"),  # its index among the task's sources
        ("split", "u1"),  # its index in SPLITS
        # 0 for what goes on with the document before; else 1, and one more for each before it
        # that has no row, as a conversation of which nothing was left
        ("first", "<i4"),
    ]
)
Rows = npt.NDArray[Any]  # of ROW


@dataclass(frozen=True)
class Shard:
    """What was written of a task, if it is whole."""

    folder: Path
    key: str
    has_masks: bool = False

    def ids_path(self, split: Split) -> Path:
        """Return the file of the ids in one split."""
        return self.folder / f"{self.key}-{split}.bin"

    def mask_path(self, split: Split) -> Path:
        """Return the file of what is learned in one split."""
        return self.folder / f"{self.key}-{split}.mask"

    @property
    def paths(self) -> list[Path]:
        """The files that are hashed in the manifest: ids, masks, names, runs and rows."""
        masks = map(self.mask_path, SPLITS if self.has_masks else ())
        others = (self.folder / f"{self.key}.{suffix}" for suffix in ("names", "runs", "rows"))
        return [*map(self.ids_path, SPLITS), *masks, *others]

    @property
    def manifest_path(self) -> Path:
        """Of a shard that is whole: sizes and checksums of its files, and statistics."""
        return self.folder / f"{self.key}.json"

    @property
    def manifest(self) -> dict[str, Any]:
        """What the manifest says."""
        return dict(json.loads(self.manifest_path.read_bytes()))

    @property
    def rows(self) -> Rows:
        """The documents, as ROW describes them, read as they are used."""
        path = self.paths[-1]
        return np.memmap(path, ROW, mode="r") if path.stat().st_size else np.zeros(0, ROW)

    def recover(self) -> bool:
        """Return whether the shard is there and undamaged, reading all of it.

        Shards are not flushed to disk one by one: a power cut can leave holes in them. What a
        merge, which was then stopped, appended to the ids is cut off.
        """
        try:
            sizes, checksums = self.manifest["sizes"], self.manifest["checksums"]
            for path, size, checksum in zip(self.paths, sizes, checksums, strict=True):
                if path.stat().st_size > size:
                    os.truncate(path, size)
                if checksum_of(path) != checksum:
                    return False
        except (OSError, ValueError, KeyError):
            return False
        return True


def shard_keys(tasks: list[Task], plan: Plan, config: PrepareConfig, *, fast: bool) -> list[str]:
    """Return for each task a hash of all that decides the bytes of its shard."""
    same_for_all = key_of(
        OUTPUT_VERSION, asdict(config), versions(), plan.rule, fast,
        describe_tokenizer(plan.tokenizer), plan.tokenizer.file_content.decode("utf-8"),
    )  # fmt: skip
    return [
        key_of(same_for_all, task.sources.digest(), task.sources[0].byte_range) for task in tasks
    ]


def checksum_of(path: Path) -> str:
    """Return the XXH3 of a file, by which damage is told."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
