"""The on-disk contract of a data folder: raw token ids, document boundaries, and meta.json.

    train.bin, val.bin   little-endian uint16 ids (uint32 where the vocabulary needs it), no header,
                         each document followed by one end-of-text id
    train.idx, val.idx   document boundaries in Megatron-LM's MMIDIDX format
    train.names, val.names   for each document where in names.txt its file is named, and its number
    names.txt            among the records of that file: see document_name
    train.mask, val.mask of conversations: a byte for each id, which says whether it is learned
    chat_template.jinja  of conversations: how they are written (chat_format.py)
    vocab.*              the vocabulary (tokenizer.py)
    meta.json            what all this is, with the SHA-256 of each file; written last: a folder
                         without it is no data set

Source of the .idx layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.chat_format import CHAT_TEMPLATE
from common.errors import DataError
from common.files import sha256_of, wrong_size
from common.tokenizer import Tokenizer, load_tokenizer

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Ids = npt.NDArray[np.unsignedinteger[Any]]

FORMAT_VERSION = 1
META_NAME = "meta.json"
WORK_NAME = ".unfinished"  # where prepare works; in it, the data set that it is just replacing
REPLACED_PATH = Path(WORK_NAME, "replaced", META_NAME)
NAMES_NAME = "names.txt"  # a line for each file; a line feed in a name is a backslash and an n
# of a document: where the line begins, in bytes; its record from 1, or 0: it is alone in its file
NAME_DTYPE = np.dtype([("name", "<u8"), ("number", "<u4")])
IDX_MAGIC = b"MMIDIDX\x00\x00"
IDX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
# Megatron's codes. It knows no uint32; its int32 (4) has the same bytes for every id below 2**31.
IDX_DTYPE_CODES = {"uint16": 8, "uint32": 4}
CHECKED_TOKENS = 1 << 20  # at a time


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """Return the narrowest of uint16 and uint32, little-endian, that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class DataFolder:
    """A data folder whose meta.json was read and whose sizes fit it."""

    path: Path
    meta: dict[str, Any]
    _opened: dict[Split, Ids] = field(default_factory=dict, repr=False, compare=False)
    _names: dict[Split, tuple[Any, mmap]] = field(default_factory=dict, repr=False, compare=False)
    _files: dict[Path, os.stat_result] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of a token id on disk."""
        return token_dtype(self.meta["tokenizer"]["vocab_size"])

    def n_tokens(self, split: Split) -> int:
        """Tokens in a split, the end-of-text ids included."""
        return int(self.meta["splits"][split]["tokens"])

    def tokens(self, split: Split) -> Ids:
        """Map a split's ids into memory: int array of shape (n_tokens,), read as it is used.

        It stays open: where another data set takes this one's place, ids go on as they were.
        """
        if split not in self._opened:
            path = self.path / f"{split}.bin"
            if self.n_tokens(split) == 0:  # an empty file cannot be mapped
                self._opened[split] = np.zeros(0, self.dtype)
            else:
                self._files[path] = path.stat()
                self._opened[split] = np.memmap(path, dtype=self.dtype, mode="r")
        return self._opened[split]

    @property
    def has_masks(self) -> bool:
        """Whether it holds conversations, of which only some ids are learned."""
        return "train.mask" in self.meta["files"]

    @property
    def has_pairs(self) -> bool:
        """Whether its documents are pairs of conversations, the better one and the worse."""
        return self.has_masks and bool(self.meta["chats"]["pairs"])

    def mask(self, split: Split) -> npt.NDArray[np.uint8]:
        """Map the bytes of a split's mask, (n_tokens,): the bits of chat_format.py."""
        if self.n_tokens(split) == 0:
            return np.zeros(0, np.uint8)
        path = self.path / f"{split}.mask"
        self._files[path] = path.stat()
        return np.memmap(path, dtype=np.uint8, mode="r")

    @property
    def chat_template(self) -> str | None:
        """How its conversations are written, in Jinja; None where it holds none."""
        return CHAT_TEMPLATE if self.has_masks else None

    def blocks(self, split: Split, n_tokens: int) -> Iterator[Ids]:
        """Yield a split's ids, so many at a time: not mapped, so none stays in memory."""
        with (self.path / f"{split}.bin").open("rb") as file:
            while len(ids := np.fromfile(file, self.dtype, n_tokens)):
                yield ids

    def check_files(self) -> None:
        """Raise DataError where an open file was written over: its ids are others now.

        Where another file has its name, the open one is as it was.
        """
        for path, before in self._files.items():
            now = path.stat() if path.exists() else None
            if now and now.st_ino == before.st_ino and now.st_mtime_ns != before.st_mtime_ns:
                raise DataError(
                    f"{path}: was written over while it was read, so that other ids are learned "
                    "from. Put it back as it was, and go on: python -m train resume"
                )

    def document_bounds(self, split: Split) -> npt.NDArray[np.int64]:
        """Return (n_documents + 1,) positions: document i is ids[bounds[i]:bounds[i + 1]]."""
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

    def document_name(self, split: Split, number: int) -> tuple[str, int | None]:
        """Return the name of the file that a document, from 0, was in, and its number there.

        Numbers begin with 1: of a line in JSON lines, else of a record, a row, a text behind a
        separator; None of what is alone in its file. An older data set knows no names. From the
        first call on the names stay open, as the ids do.
        """
        if f"{split}.names" not in self.meta["files"]:
            return f"{self.path.name}, document {number + 1:,}", None
        if split not in self._names:
            entries = np.memmap(self.path / f"{split}.names", NAME_DTYPE, "r")
            with (self.path / NAMES_NAME).open("rb") as file:
                self._names[split] = entries, mmap(file.fileno(), 0, access=ACCESS_READ)
        entries, names = self._names[split]
        begin, place = entries[number].tolist()
        name = names[begin : names.find(b"\n", begin)]
        return name.decode("utf-8", "replace"), place or None

    def tokenizer(self) -> Tokenizer:
        """Load the vocabulary the ids belong to."""
        return load_tokenizer(self.path, self.meta["tokenizer"])

    @property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the vocabulary file."""
        return str(self.meta["files"][self.meta["tokenizer"]["file"]]["sha256"])

    @property
    def sha256(self) -> str:
        """One hash for all that is learned from, whatever its files are called: that of hashes."""
        files = sorted(self.meta["files"].items())
        hashes = [f"{name} {entry['sha256']}" for name, entry in files if "names" not in name]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def meta_sha256(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of what meta.json says, but for that hash itself."""
    said = {name: value for name, value in meta.items() if name != "meta_sha256"}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def open_data(path: Path) -> DataFolder:
    """Open a data folder; raise DataError where meta.json or a file's size is not as it was."""
    meta_path = path / META_NAME
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder. Make it: python -m prepare text SRC --out {path}, or of "
            "conversations with python -m prepare chats"
        )
    try:
        meta = json.loads(meta_path.read_bytes())
        version = meta["format"]
    except FileNotFoundError as error:
        raise DataError(
            f"{meta_path}: missing, so {path} is no data set, or one whose making was stopped. "
            f"Make it again: python -m prepare text SRC --out {path}"
            + ", which first puts back what was there before"
            * (path / REPLACED_PATH).exists()
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{meta_path}: cannot be read as a data set's ({error}).") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{meta_path}: format {version}, but this version reads {FORMAT_VERSION}. "
            "Prepare the data again."
        )
    if meta.get("meta_sha256", own := meta_sha256(meta)) != own:
        raise DataError(
            f"{meta_path}: its content changed after it was written (SHA-256). Prepare the data "
            "again."
        )
    absent = sorted({"files", "splits", "tokenizer"} - meta.keys())
    if absent:
        raise DataError(f"{meta_path}: lacks {', '.join(absent)}. Prepare the data again.")
    for name, entry in meta["files"].items():
        if wrong := wrong_size(path / name, entry["size_bytes"], "meta.json"):
            raise DataError(
                f"{wrong} It was cut short or belongs to another data set: prepare the data again."
            )
    return DataFolder(path, meta)


def verify_data(data: DataFolder) -> None:
    """Read all again, hashes, counts and ids; raise DataError that names the first damaged file."""
    for name, entry in data.meta["files"].items():
        found = sha256_of(data.path / name)
        if found != entry["sha256"]:
            raise DataError(
                f"{data.path / name}: SHA-256 is {found}, but meta.json promises "
                f"{entry['sha256']}. The file changed after it was written: prepare it again."
            )
    tokenizer = data.tokenizer()
    for split in SPLITS:
        path, promised = data.path / f"{split}.bin", data.meta["splits"][split]
        bounds = data.document_bounds(split)
        n_tokens = n_eot = largest = 0
        for block in data.blocks(split, CHECKED_TOKENS):
            n_tokens += len(block)
            n_eot += int((block == tokenizer.eot_id).sum())
            largest = max(largest, int(block.max()))
        for what, count, expected in [
            ("tokens in the .bin", n_tokens, promised["tokens"]),
            ("tokens in the .idx", int(bounds[-1]), promised["tokens"]),
            ("end-of-text ids", n_eot, promised["documents"]),
        ]:
            if count != expected:
                raise DataError(f"{path}: {count:,} {what}, but meta.json promises {expected:,}.")
        last = tokenizer.vocab_size - 1
        if largest > last:
            raise DataError(f"{path}: holds id {largest}, but the vocabulary ends at {last}.")
