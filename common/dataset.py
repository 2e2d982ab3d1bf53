"""The on-disk contract of a data folder: raw token ids, document boundaries, and meta.json.

    train.bin, val.bin   little-endian uint16 ids (uint32 where the vocabulary needs it), no header,
                         each document followed by one end-of-text id
    train.idx, val.idx   document boundaries in Megatron-LM's MMIDIDX format
    vocab.*              the vocabulary (tokenizer.py)
    meta.json            what all this is, with the SHA-256 of each file; written last: a folder
                         without it is no data set

Source of the .idx layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.files import fsync_folder, sha256_of, write_all, write_json
from common.tokenizer import (
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
    save_tokenizer,
)

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Ids = npt.NDArray[np.unsignedinteger[Any]]

FORMAT_VERSION = 1
META_NAME = "meta.json"
VOCABULARY_NAMES = (BytePairTokenizer.file_name, CharTokenizer.file_name)
IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
# Megatron's codes. It knows no uint32; its int32 (4) has the same bytes for every id below 2**31.
IDX_DTYPE_CODES = {"uint16": 8, "uint32": 4}
IDX_BLOCK = 1 << 17  # documents whose entries are in memory at a time
MAX_DOCUMENT_TOKENS = (1 << 31) - 1  # lengths are int32
COPY_BYTES = 1 << 20
COPIES_TOGETHER = 2  # files
CHECKED_TOKENS = 1 << 20  # at a time


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """Return the narrowest of uint16 and uint32, little-endian, that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenWriter:
    """Writes one split as it comes, under unfinished names: ``split.bin.tmp``, ``split.idx.tmp``.

    Nothing of it is kept in memory, neither ids nor lengths.
    """

    def __init__(self, folder: Path, split: Split, dtype: "np.dtype[Any]") -> None:
        self.bin_path = folder / f"{split}.bin"
        self.idx_path = folder / f"{split}.idx"
        self.dtype = dtype
        self.n_tokens = 0
        self.n_documents = 0
        self._digest = hashlib.sha256()
        self._bin: BinaryIO = _unfinished(self.bin_path).open("wb")
        self._idx = _unfinished(self.idx_path).open("w+b")
        self._idx.write(bytes(IDX_HEADER.size))  # known at the end
        self._copies = _Copies()

    def add(self, ids: Ids, lengths: npt.NDArray[np.int64]) -> None:
        """Append documents that lie one after another in ``ids``, end-of-text ids included.

        Raises: DataError for a document that is too long for the index.
        """
        assert lengths.sum() == len(ids)
        self.add_ids(ids)
        self.add_lengths(lengths)

    def add_ids(self, ids: Ids) -> None:
        """Append ids of documents whose lengths are added apart."""
        assert not len(ids) or int(ids.max()) <= np.iinfo(self.dtype).max
        raw = np.ascontiguousarray(ids, self.dtype).data
        self._bin.write(raw)
        self._digest.update(raw)
        self.n_tokens += len(ids)

    def add_file(self, path: Path, n_bytes: int) -> None:
        """Append ids as the first ``n_bytes`` of a file have them.

        The first such file is not copied: a second name for it is what is written on. The others
        are by threads, which the end waits for.
        """
        if self.n_tokens or not self._linked(path, n_bytes):
            start = self._bin.seek(0, os.SEEK_CUR)
            self._copies.add(path, _unfinished(self.bin_path), start, n_bytes)
            self._bin.seek(start + n_bytes)
        with path.open("rb") as file:
            for raw in _blocks(file, n_bytes):
                self._digest.update(raw)
        self.n_tokens += n_bytes // self.dtype.itemsize

    def _linked(self, path: Path, n_bytes: int) -> bool:
        target = _unfinished(self.bin_path)
        self._bin.close()
        target.unlink()
        try:
            os.link(path, target)
        except OSError:  # another file system, or one that has no links
            self._bin = target.open("wb")
            return False
        self._bin = target.open("r+b")
        self._bin.truncate(n_bytes)
        self._bin.seek(n_bytes)
        return True

    def add_lengths(self, lengths: npt.NDArray[np.int64]) -> None:
        """Append the lengths of documents whose ids are added apart.

        Raises: DataError for a document that is too long for the index.
        """
        if len(lengths) and int(lengths.max()) > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{self.bin_path}: a document of {int(lengths.max()):,} tokens, but the index "
                f"holds at most {MAX_DOCUMENT_TOKENS:,} of one. Cut it: --separator."
            )
        self._idx.write(lengths.astype("<i4").tobytes())
        self.n_documents += len(lengths)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Flush both files to disk; return the size and SHA-256 of each by its final name."""
        self._copies.finish()
        start = 0
        for lengths in self._lengths():
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
            file.close()
        idx_tmp = _unfinished(self.idx_path)
        return {
            self.bin_path.name: {
                "size_bytes": self.n_tokens * self.dtype.itemsize,
                "sha256": self._digest.hexdigest(),
            },
            self.idx_path.name: {
                "size_bytes": idx_tmp.stat().st_size,
                "sha256": sha256_of(idx_tmp),
            },
        }

    def _lengths(self) -> Iterator[npt.NDArray[np.int32]]:
        """Read back the lengths, block by block, leaving the file where it was."""
        for first in range(0, self.n_documents, IDX_BLOCK):
            n_read = min(IDX_BLOCK, self.n_documents - first)
            end = self._idx.tell()
            self._idx.seek(IDX_HEADER.size + 4 * first)
            raw = self._idx.read(4 * n_read)
            self._idx.seek(end)
            yield np.frombuffer(raw, "<i4")

    def discard(self) -> None:
        """Delete what was written and not committed."""
        self._copies.stop()
        for file, path in ((self._bin, self.bin_path), (self._idx, self.idx_path)):
            file.close()
            _unfinished(path).unlink(missing_ok=True)


def _blocks(file: BinaryIO, n_bytes: int) -> Iterator[bytes]:
    while n_bytes:
        yield (raw := file.read(min(COPY_BYTES, n_bytes)))
        assert raw, f"{file.name} lacks {n_bytes} bytes"
        n_bytes -= len(raw)


class _Copies:
    """Files that threads copy to their places in another: most of it is to get memory for them.

    16 archives of 400 MB took 7.3 s where one thread copied and hashed, and 6.7 s like this.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[None]] = deque()
        self._stopped = False

    def add(self, path: Path, target: Path, start: int, n_bytes: int) -> None:
        """Copy the first ``n_bytes`` of a file to ``start`` in the file ``target``."""
        from concurrent.futures import ThreadPoolExecutor

        self._pool = self._pool or ThreadPoolExecutor(COPIES_TOGETHER)
        while len(self._under_way) >= COPIES_TOGETHER:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(self._copy, path, target, start, n_bytes))

    def _copy(self, path: Path, target: Path, start: int, n_bytes: int) -> None:
        with path.open("rb") as file, target.open("r+b", buffering=0) as out:
            out.seek(start)
            for raw in _blocks(file, n_bytes):
                if self._stopped:
                    return
                write_all(out, raw)

    def finish(self) -> None:
        """Wait until all are copied."""
        for copy in self._under_way:
            copy.result()
        self.stop()

    def stop(self) -> None:
        """End at once."""
        self._stopped = True
        if self._pool is not None:
            self._pool.shutdown()


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def commit(
    folder: Path, files: dict[str, dict[str, Any]], tokenizer: Tokenizer, meta: dict[str, Any]
) -> dict[str, Any]:
    """Give finished files their names, then write meta.json: from then on it is a data set.

    ``files`` is what the writers' ``finish`` returned. Returns meta.json whole.
    """
    (folder / META_NAME).unlink(missing_ok=True)
    fsync_folder(folder)
    for name in files:
        os.replace(_unfinished(folder / name), folder / name)
    for name in VOCABULARY_NAMES:  # one of another kind would stay from an earlier data set
        (folder / name).unlink(missing_ok=True)
    save_tokenizer(tokenizer, folder)
    vocabulary = tokenizer.file_content()
    entry = {"size_bytes": len(vocabulary), "sha256": hashlib.sha256(vocabulary).hexdigest()}
    whole = {
        "format": FORMAT_VERSION,
        "tokenizer": describe_tokenizer(tokenizer),
        "files": files | {tokenizer.file_name: entry},
        **meta,
    }
    write_json(folder / META_NAME, whole)
    return whole


@dataclass(frozen=True)
class DataFolder:
    """A data folder whose meta.json was read and whose sizes fit it."""

    path: Path
    meta: dict[str, Any]

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of a token id on disk."""
        return token_dtype(self.meta["tokenizer"]["vocab_size"])

    def n_tokens(self, split: Split) -> int:
        """Tokens in a split, the end-of-text ids included."""
        return int(self.meta["splits"][split]["tokens"])

    def tokens(self, split: Split) -> Ids:
        """Map a split's ids into memory: int array of shape (n_tokens,), read as it is used."""
        if self.n_tokens(split) == 0:  # an empty file cannot be mapped
            return np.zeros(0, self.dtype)
        return np.memmap(self.path / f"{split}.bin", dtype=self.dtype, mode="r")

    def document_bounds(self, split: Split) -> npt.NDArray[np.int64]:
        """Return (n_documents + 1,) positions: document i is ids[bounds[i]:bounds[i + 1]].

        Raises: DataError when the .idx is not the one that meta.json counts documents of.
        """
        path = self.path / f"{split}.idx"
        n_documents = int(self.meta["splits"][split]["documents"])
        code = IDX_DTYPE_CODES[self.dtype.name]
        with path.open("rb") as file:
            header = file.read(IDX_HEADER.size)
            lengths = np.fromfile(file, "<i4", count=n_documents)
        if header != IDX_HEADER.pack(IDX_MAGIC, 1, code, n_documents, n_documents + 1):
            raise DataError(
                f"{path}: begins with {header!r}, which is not how the index of "
                f"{n_documents:,} documents begins. It is damaged: prepare the data again."
            )
        bounds = np.zeros(n_documents + 1, np.int64)
        np.cumsum(lengths, out=bounds[1:])
        return bounds

    def tokenizer(self) -> Tokenizer:
        """Load the vocabulary the ids belong to."""
        return load_tokenizer(self.path, self.meta["tokenizer"])

    @property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the vocabulary file."""
        return str(self.meta["files"][self.meta["tokenizer"]["file"]]["sha256"])

    @property
    def sha256(self) -> str:
        """One hash for the whole data set: that of its files' hashes."""
        hashes = [f"{name} {entry['sha256']}" for name, entry in sorted(self.meta["files"].items())]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def open_data(path: Path) -> DataFolder:
    """Open a data folder, checking meta.json and the size of each file (hashes: verify_data).

    Raises: DataError when it is no data set, or its files are not those that meta.json describes.
    """
    meta_path = path / META_NAME
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Make it: python -m prepare text SRC --out {path}")
    try:
        meta = json.loads(meta_path.read_bytes())
        version = meta["format"]
    except FileNotFoundError as error:
        raise DataError(
            f"{meta_path}: missing, so {path} is no data set, or one whose making was stopped. "
            f"Make it again: python -m prepare text SRC --out {path}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{meta_path}: cannot be read as a data set's meta.json ({error})."
        ) from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{meta_path}: format {version}, but this version reads {FORMAT_VERSION}. "
            "Prepare the data again."
        )
    absent = sorted({"files", "splits", "tokenizer"} - meta.keys())
    if absent:
        raise DataError(f"{meta_path}: lacks {', '.join(absent)}. Prepare the data again.")
    data = DataFolder(path, meta)
    for name, entry in meta["files"].items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != entry["size_bytes"]:
            there = "missing" if found is None else f"{found:,} bytes"
            raise DataError(
                f"{file}: {there}, but meta.json promises {entry['size_bytes']:,} bytes. "
                "It was cut short or belongs to another data set: prepare the data again."
            )
    return data


def verify_data(data: DataFolder) -> None:
    """Read every file again: hashes, counts of tokens and documents, ids within the vocabulary.

    Raises: DataError that names the first file that is not as it was written.
    """
    for name, entry in data.meta["files"].items():
        found = sha256_of(data.path / name)
        if found != entry["sha256"]:
            raise DataError(
                f"{data.path / name}: SHA-256 is {found}, but meta.json promises "
                f"{entry['sha256']}. The file changed after it was written: prepare it again."
            )
    tokenizer = data.tokenizer()
    for split in SPLITS:
        promised = data.meta["splits"][split]
        ids, bounds = data.tokens(split), data.document_bounds(split)
        n_eot = largest = 0
        for start in range(0, len(ids), CHECKED_TOKENS):
            block = ids[start : start + CHECKED_TOKENS]
            n_eot += int((block == tokenizer.eot_id).sum())
            largest = max(largest, int(block.max()))
        for what, count, expected in [
            ("tokens in the .bin", len(ids), promised["tokens"]),
            ("tokens in the .idx", int(bounds[-1]), promised["tokens"]),
            ("end-of-text ids", n_eot, promised["documents"]),
        ]:
            if count != expected:
                raise DataError(
                    f"{data.path / split}.bin: {count:,} {what}, "
                    f"but meta.json promises {expected:,}."
                )
        if largest >= tokenizer.vocab_size:
            raise DataError(
                f"{data.path / split}.bin: holds id {largest}, but the vocabulary ends at "
                f"{tokenizer.vocab_size - 1}."
            )
