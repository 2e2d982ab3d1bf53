"""A task's share of the ids on disk, which is whole or not there.

KEY-train.bin, KEY-val.bin    ids in the order of the documents
KEY.rows                      a row for each document (two where its end goes to val): see ROW
KEY.json                      the manifest, written last: without it there is no shard
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from common.dataset import SPLITS, Split

BLOCK_BYTES = 1 << 20

ROW = np.dtype(
    [
        ("n_tokens", "<i8"),  # the end-of-text id included
        ("n_bytes", "<i8"),
        ("hash", "<u8", 2),  # of the whole document: equal for equal ones
        ("source", "<i4"),  # its index among the task's sources
        ("split", "u1"),  # its index in SPLITS
        ("first", "u1"),  # 0 for the second half of a document
    ]
)
Rows = npt.NDArray[Any]  # of ROW


@dataclass(frozen=True)
class Shard:
    """What was written of a task, if it is whole."""

    folder: Path
    key: str

    def ids_path(self, split: Split) -> Path:
        """Return the file of the ids in one split."""
        return self.folder / f"{self.key}-{split}.bin"

    @property
    def paths(self) -> list[Path]:
        """The files that are hashed in the manifest."""
        return [*map(self.ids_path, SPLITS), self.folder / f"{self.key}.rows"]

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

    def is_whole(self) -> bool:
        """Say whether the shard is there and undamaged, reading all of it.

        Shards are not flushed to disk one by one: a power cut can leave holes in them. Behind the
        ids there may be those that a merge appended.
        """
        try:
            for path, size, checksum in zip(
                self.paths, self.manifest["sizes"], self.manifest["checksums"], strict=True
            ):
                digest = xxhash.xxh3_128()
                with path.open("rb") as file:
                    while size and (block := file.read(min(size, BLOCK_BYTES))):
                        digest.update(block)
                        size -= len(block)
                if size or digest.hexdigest() != checksum:
                    return False
        except (OSError, ValueError, KeyError):
            return False
        return True

    def trim(self) -> None:
        """Cut off what a merge, which was then stopped, appended to the ids."""
        for path, size in zip(self.paths, self.manifest["sizes"], strict=True):
            if path.stat().st_size > size:
                os.truncate(path, size)
