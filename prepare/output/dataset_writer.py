"""Shards, in the order of their tasks -> the files of a data folder (common/dataset.py).

They are written elsewhere and moved there at the end (commit.py). Here alone is decided which of
several equal documents stays: the first, in the order of sources.
"""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from common.dataset import (
    IDX_DTYPE_CODES,
    IDX_HEADER,
    IDX_MAGIC,
    SPLITS,
    Split,
    token_dtype,
)
from common.errors import DataError
from common.files import flush_to_disk
from prepare.chunks import Stats
from prepare.output.commit import Files
from prepare.output.names import NamesWriter
from prepare.output.shard import Rows, Shard
from prepare.sources.source import SourceList
from prepare.workers.executor import Task

BLOCK_ROWS = 1 << 17  # in memory at a time; so many entries of the index, too
SORTED_ROWS = 2 << 20  # hashes sorted at a time, when equal documents are looked for
MAX_DOCUMENT_TOKENS = (1 << 31) - 1  # lengths are int32
COPY_BYTES = 1 << 20
MAX_SOURCES = 1_000  # listed in meta.json
COUNTED = ("documents", "bytes", "tokens")

Flags = npt.NDArray[np.bool_]


class TokenWriter(ExitStack):
    """Writes a split's ids and the index of its documents as they come, keeping none in memory."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        dtype: "np.dtype[Any]",
        base: Shard | None = None,
        *,
        has_mask: bool = False,
    ) -> None:
        """Write into ``folder``, with ``has_mask`` a mask, too; ``base``: append to that shard."""
        super().__init__()
        self.dtype = dtype
        self.mask: IO[bytes] | None = None
        self._split, mode = split, "ab" if base else "wb"
        self._bin_path = base.ids_path(split) if base else folder / f"{split}.bin"
        self._idx_path = folder / f"{split}.idx"
        self._mask_path = base.mask_path(split) if base else folder / f"{split}.mask"
        self._bin = self.enter_context(self._bin_path.open(mode))
        if has_mask:
            self.mask = self.enter_context(self._mask_path.open(mode))
        self.n_tokens, self.n_documents = self._bin.tell() // dtype.itemsize, 0
        self._idx = self.enter_context(self._idx_path.open("w+b"))
        self._idx.write(bytes(IDX_HEADER.size))  # known at the end

    def add_ids(self, raw: bytes | memoryview) -> None:
        """Append ids, as they lie in the file, of documents whose lengths are added apart."""
        self._bin.write(raw)
        self.n_tokens += memoryview(raw).nbytes // self.dtype.itemsize

    def add_lengths(self, lengths: npt.NDArray[np.int64]) -> None:
        """Append the lengths of documents; raise DataError for one too long for the index."""
        if len(lengths) and int(lengths.max()) > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{self._split}.bin: a document of {int(lengths.max()):,} tokens, but the index "
                f"holds at most {MAX_DOCUMENT_TOKENS:,} of one. Cut it: --separator."
            )
        self._idx.write(lengths.astype("<i4").tobytes())
        self.n_documents += len(lengths)

    def finish(self) -> Files:
        """Complete the index and flush all files to disk."""
        self._idx.flush()
        start = 0
        with self._idx_path.open("rb") as index:
            index.seek(IDX_HEADER.size)
            for first in range(0, self.n_documents, BLOCK_ROWS):
                lengths = np.fromfile(index, "<i4", min(BLOCK_ROWS, self.n_documents - first))
                ends = start + np.cumsum(lengths, dtype=np.int64)
                self._idx.write(((ends - lengths) * self.dtype.itemsize).astype("<i8").tobytes())
                start = int(ends[-1])
        for first in range(0, self.n_documents + 1, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, self.n_documents + 1)
            self._idx.write(np.arange(first, last, dtype="<i8").tobytes())
        code = IDX_DTYPE_CODES[self.dtype.name]
        self._idx.seek(0)
        self._idx.write(IDX_HEADER.pack(IDX_MAGIC, 1, code, self.n_documents, self.n_documents + 1))
        files = {f"{self._split}.bin": self._bin_path, f"{self._split}.idx": self._idx_path}
        written = [self._bin, self._idx]
        if self.mask is not None:
            files[f"{self._split}.mask"] = self._mask_path
            written.append(self.mask)
        for file in written:
            flush_to_disk(file)
        self.close()
        return files


def merge(
    tasks: list[Task],
    shards: list[Shard],
    folder: Path,
    sources: SourceList,
    vocab_size: int,
    *,
    dedup: bool,
) -> tuple[Files, dict[str, Any], Stats]:
    """Write the ids, index, names and masks of both splits into ``folder``; memory stays flat.

    Returns the files, their counts as meta.json has them, and the stats. With ``dedup`` documents
    equal to an earlier one are left out. Without, the ids of the first shard are not copied: those
    of the others are appended to them.
    """
    dtype = token_dtype(vocab_size)
    duplicate = find_duplicates(shards) if dedup else None
    base = None if dedup else shards[0]
    by_source = np.zeros((len(sources), len(SPLITS), len(COUNTED)), np.int64)
    stats, n_rows, n_documents, n_duplicates = Stats(), 0, 0, 0
    with ExitStack() as stack, NamesWriter(folder) as names:
        has_mask = shards[0].has_masks
        writers = [
            stack.enter_context(TokenWriter(folder, split, dtype, base, has_mask=has_mask))
            for split in SPLITS
        ]
        for task, shard in zip(tasks, shards, strict=True):
            stats.add(Stats.from_json(shard.manifest["stats"]))
            first_ids = [0] * len(SPLITS)  # of a block of rows, among the shard's ids
            names.begin_task(task, *shard.paths[-3:-1])
            shard_rows = shard.rows
            for start in range(0, len(shard_rows), BLOCK_ROWS):
                rows = np.array(shard_rows[start : start + BLOCK_ROWS])
                kept = np.ones(len(rows), bool)
                if duplicate is not None:
                    kept = ~duplicate[n_rows : n_rows + len(rows)]
                n_rows += len(rows)
                n_documents += int(np.count_nonzero(rows["first"][kept]))
                n_duplicates += int(np.count_nonzero(rows["first"][~kept]))
                _count(by_source, task, rows[kept])
                names.add(rows, kept)
                for number, (split, writer) in enumerate(zip(SPLITS, writers, strict=True)):
                    chosen = rows["split"] == number
                    lengths = rows["n_tokens"][chosen]
                    if shard is not base:
                        runs = _runs(first_ids[number], lengths, kept[chosen])
                        _copy(shard.ids_path(split), runs, dtype.itemsize, writer.add_ids)
                        if writer.mask is not None:
                            _copy(shard.mask_path(split), runs, 1, writer.mask.write)
                    first_ids[number] += int(lengths.sum())
                    writer.add_lengths(lengths[kept[chosen]])
        files = {name: path for writer in writers for name, path in writer.finish().items()}
        files |= names.finish()
    counts = {
        "splits": _by_split(by_source.sum(axis=0)),
        "n_documents": n_documents,
        "n_duplicates": n_duplicates if dedup else None,  # None: not looked for
        "sources": _largest(sources, by_source),
    }
    return files, counts, stats


def _largest(sources: SourceList, by_source: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the counts of each source; where they are many, of the largest and of the others."""
    order = np.argsort(-by_source[..., COUNTED.index("tokens")].sum(axis=1), kind="stable")
    chosen, others = np.sort(order[:MAX_SOURCES]), order[MAX_SOURCES:]
    listed: list[dict[str, Any]] = []
    for i in chosen.tolist():
        source = sources[i]
        size = None if source.dataset else sources.sizes[i]
        listed.append({"name": source.name, "size_bytes": size} | _by_split(by_source[i]))
    if len(others):
        size = int(np.array(sources.sizes)[others].sum())
        name = {"name": f"{len(others):,} smaller ones", "n_sources": len(others)}
        listed.append(name | {"size_bytes": size} | _by_split(by_source[others].sum(axis=0)))
    return listed


def _by_split(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return counts of shape (SPLITS, COUNTED) as meta.json has them."""
    rows = (dict(zip(COUNTED, row, strict=True)) for row in counts.tolist())
    return dict(zip(SPLITS, rows, strict=True))


def _count(by_source: npt.NDArray[np.int64], task: Task, rows: Rows) -> None:
    places = task.first_index + rows["source"], rows["split"]
    columns = (np.ones(len(rows), np.int64), rows["n_bytes"], rows["n_tokens"])
    for i, column in enumerate(columns):
        np.add.at(by_source[..., i], places, column)


def _runs(first_id: int, lengths: npt.NDArray[np.int64], kept: Flags) -> list[tuple[int, int]]:
    """Return where each run of rows that are kept begins and ends, in ids of the shard."""
    ends = first_id + np.cumsum(lengths)
    starts = ends - lengths
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return [(int(starts[first]), int(ends[last - 1])) for first, last in edges.tolist()]


def _copy(
    path: Path, runs: list[tuple[int, int]], item_bytes: int, write: Callable[[bytes], object]
) -> None:
    """Write the items in ``runs`` of a file."""
    with path.open("rb") as file:
        for start, end in runs:
            file.seek(start * item_bytes)
            n_left = (end - start) * item_bytes
            while n_left:
                raw = file.read(min(n_left, COPY_BYTES))
                assert raw, f"{path} lacks {n_left} bytes"
                write(raw)
                n_left -= len(raw)


def find_duplicates(shards: list[Shard]) -> Flags:
    """Say of each row of all shards whether an earlier document had the same text.

    The rows are taken in buckets by their hash, so that no more than about SORTED_ROWS of them are
    in memory at once. The second half of a document goes the way of the first.
    """
    starts = [0, *accumulate(len(shard.rows) for shard in shards)]
    duplicate = np.zeros(starts[-1], bool)
    n_buckets = -(-len(duplicate) // SORTED_ROWS)
    for bucket in range(n_buckets):
        chosen = [_bucket(shard.rows, bucket, n_buckets) for shard in shards]
        places = np.concatenate([start + i for start, (i, _) in zip(starts, chosen, strict=False)])
        keys = np.concatenate([hashes for _, hashes in chosen])
        order = np.lexsort((places, keys[:, 1], keys[:, 0]))
        same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
        duplicate[places[order[1:][same]]] = True
    return duplicate


def _bucket(rows: Rows, bucket: int, n_buckets: int) -> tuple[npt.NDArray[np.int64], Any]:
    """Return the places and hashes of those rows that belong to a bucket."""
    keys = rows["hash"].copy()
    keys[:, 1] ^= (rows["first"] == 0).astype(np.uint64)  # second halves apart from first ones
    chosen = np.flatnonzero(keys[:, 0] % np.uint64(n_buckets) == bucket)
    return chosen, keys[chosen]
