"""The files of a data folder (common/dataset.py), written elsewhere and moved there at the end."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from common.dataset import (
    FORMAT_VERSION,
    IDX_DTYPE_CODES,
    IDX_HEADER,
    IDX_MAGIC,
    META_NAME,
    Split,
)
from common.errors import DataError
from common.files import fsync_folder, sha256_of, write_json
from common.tokenizer import Tokenizer, describe_tokenizer, save_tokenizer

IDX_BLOCK = 1 << 17  # documents whose entries are in memory at a time
MAX_DOCUMENT_TOKENS = (1 << 31) - 1  # lengths are int32
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class WrittenFile:
    """A file that is flushed to disk, and waits for its name."""

    path: Path
    name: str  # in the data folder
    size_bytes: int
    sha256: str


class TokenWriter:
    """Writes a split's ids and the index of its documents as they come, keeping none in memory."""

    def __init__(
        self, folder: Path, split: Split, dtype: "np.dtype[Any]", ids_path: Path | None = None
    ) -> None:
        """Write into ``folder``; with ``ids_path`` append to the ids in that file."""
        self.dtype = dtype
        self.n_tokens = self.n_documents = 0
        self._split, self._digest = split, hashlib.sha256()
        self._bin_path = ids_path or folder / f"{split}.bin"
        self._idx_path = folder / f"{split}.idx"
        self._bin = self._bin_path.open("r+b" if ids_path else "w+b")
        for raw in iter(lambda: self._bin.read(COPY_BYTES), b""):
            self._digest.update(raw)
            self.n_tokens += len(raw) // dtype.itemsize
        self._idx = self._idx_path.open("w+b")
        self._idx.write(bytes(IDX_HEADER.size))  # known at the end

    def add_ids(self, raw: bytes | memoryview) -> None:
        """Append ids, as they lie in the file, of documents whose lengths are added apart."""
        self._bin.write(raw)
        self._digest.update(raw)
        self.n_tokens += memoryview(raw).nbytes // self.dtype.itemsize

    def add_lengths(self, lengths: npt.NDArray[np.int64]) -> None:
        """Append the lengths of documents whose ids are added apart.

        Raises: DataError for a document that is too long for the index.
        """
        if len(lengths) and int(lengths.max()) > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{self._split}.bin: a document of {int(lengths.max()):,} tokens, but the index "
                f"holds at most {MAX_DOCUMENT_TOKENS:,} of one. Cut it: --separator."
            )
        self._idx.write(lengths.astype("<i4").tobytes())
        self.n_documents += len(lengths)

    def finish(self) -> list[WrittenFile]:
        """Complete the index and flush both files to disk."""
        self._idx.flush()
        start = 0
        with self._idx_path.open("rb") as written:
            written.seek(IDX_HEADER.size)
            for first in range(0, self.n_documents, IDX_BLOCK):
                lengths = np.fromfile(written, "<i4", min(IDX_BLOCK, self.n_documents - first))
                ends = start + np.cumsum(lengths, dtype=np.int64)
                self._idx.write(((ends - lengths) * self.dtype.itemsize).astype("<i8").tobytes())
                start = int(ends[-1])
        for first in range(0, self.n_documents + 1, IDX_BLOCK):
            last = min(first + IDX_BLOCK, self.n_documents + 1)
            self._idx.write(np.arange(first, last, dtype="<i8").tobytes())
        code = IDX_DTYPE_CODES[self.dtype.name]
        self._idx.seek(0)
        self._idx.write(IDX_HEADER.pack(IDX_MAGIC, 1, code, self.n_documents, self.n_documents + 1))
        for file in (self._bin, self._idx):
            file.flush()
            os.fsync(file.fileno())
        self.close()
        return [
            WrittenFile(path, f"{self._split}{path.suffix}", path.stat().st_size, sha256)
            for path, sha256 in [
                (self._bin_path, self._digest.hexdigest()),
                (self._idx_path, sha256_of(self._idx_path)),
            ]
        ]

    def close(self) -> None:
        """Close both files, whole or not."""
        self._bin.close()
        self._idx.close()


def commit(
    folder: Path,
    work: Path,
    files: Sequence[WrittenFile],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
) -> dict[str, Any]:
    """Move finished files and the vocabulary to ``folder``, then meta.json: now it is a data set.

    Where that fails, the data set that was there is as it was. What it had lies in ``work``, which
    is of the same file system, until that is deleted. Returns meta.json whole.
    """
    staged, replaced = work / "staged", work / "replaced"
    for made in (staged, replaced):
        made.mkdir(exist_ok=True)
    save_tokenizer(tokenizer, staged)
    vocabulary = tokenizer.file_content()
    hashes = {f.name: {"size_bytes": f.size_bytes, "sha256": f.sha256} for f in files}
    sha256 = hashlib.sha256(vocabulary).hexdigest()
    hashes[tokenizer.file_name] = {"size_bytes": len(vocabulary), "sha256": sha256}
    whole = {
        "format": FORMAT_VERSION,
        "tokenizer": describe_tokenizer(tokenizer),
        "files": hashes,
        **meta,
    }
    write_json(staged / META_NAME, whole)
    new = {file.name: file.path for file in files}
    new |= {name: staged / name for name in (tokenizer.file_name, META_NAME)}
    moved: list[tuple[Path, Path]] = []
    try:
        for name in [META_NAME, *(_old_vocabularies(folder) | new.keys()) - {META_NAME}]:
            if (folder / name).is_file():
                _move(folder / name, replaced / name, moved)
        fsync_folder(folder)
        for name, path in new.items():
            if name == META_NAME:
                fsync_folder(folder)
            _move(path, folder / name, moved)
    except BaseException:
        for path, target in reversed(moved):
            os.replace(target, path)
        raise
    fsync_folder(folder)
    return whole


def _move(path: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    os.replace(path, target)
    moved.append((path, target))


def _old_vocabularies(folder: Path) -> set[str]:
    """Return the vocabulary files of the data set that is there: not those of anybody else."""
    try:
        old = json.loads((folder / META_NAME).read_bytes())["files"]
        return {tokenizer.file_name for tokenizer in get_args(Tokenizer)} & set(old)
    except (OSError, ValueError, KeyError, TypeError):
        return set()
