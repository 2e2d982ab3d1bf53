"""Shards, in the order of their tasks -> the files of data/.

Here alone is decided which of several equal documents stays: the first, in the order of sources.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dataset import SPLITS, token_dtype
from prepare.chunks import Stats
from prepare.output.dataset_writer import COPY_BYTES, TokenWriter, WrittenFile
from prepare.output.shard import Rows, Shard
from prepare.sources.discover import Source
from prepare.workers.executor import Task

BLOCK_ROWS = 1 << 17  # in memory at a time
SORTED_ROWS = 2 << 20  # hashes sorted at a time, when equal documents are looked for

Flags = npt.NDArray[np.bool_]
COUNTED = ("documents", "bytes", "tokens")


@dataclass(frozen=True)
class Merged:
    """The files, and what meta.json says of what is in them."""

    files: list[WrittenFile]
    counts: dict[str, Any]
    stats: Stats


def merge(
    tasks: list[Task],
    shards: list[Shard],
    folder: Path,
    sources: list[Source],
    vocab_size: int,
    *,
    dedup: bool,
) -> Merged:
    """Write the .bin and .idx of both splits into ``folder``; memory stays flat.

    With ``dedup`` documents equal to an earlier one are left out. Without, the ids of the first
    shard are not copied: those of the others are appended to them.
    """
    dtype = token_dtype(vocab_size)
    duplicate = find_duplicates(shards) if dedup else None
    shards[0].trim()
    base = None if dedup else shards[0]
    by_source = np.zeros((len(sources), len(SPLITS), len(COUNTED)), np.int64)
    stats, start, n_documents, n_duplicates = Stats(), 0, 0, 0
    with ExitStack() as stack:
        writers = [
            TokenWriter(folder, split, dtype, base.ids_path(split) if base else None)
            for split in SPLITS
        ]
        for writer in writers:
            stack.enter_context(closing(writer))
        for task, shard in zip(tasks, shards, strict=True):
            stats.add(Stats.from_json(shard.manifest["stats"]))
            first_ids = [0] * len(SPLITS)  # of a block of rows, among the shard's ids
            for rows in _blocks(shard):
                kept = np.ones(len(rows), bool)
                if duplicate is not None:
                    kept = ~duplicate[start : start + len(rows)]
                start += len(rows)
                n_documents += int(rows["first"][kept].sum())
                n_duplicates += int(rows["first"][~kept].sum())
                _count(by_source, task, rows[kept])
                for number, (split, writer) in enumerate(zip(SPLITS, writers, strict=True)):
                    chosen = rows["split"] == number
                    lengths = rows["n_tokens"][chosen]
                    if shard is not base:
                        first_id = first_ids[number]
                        _copy(shard.ids_path(split), first_id, lengths, kept[chosen], writer)
                    first_ids[number] += int(lengths.sum())
                    writer.add_lengths(lengths[kept[chosen]])
        files = [file for writer in writers for file in writer.finish()]
    counts = {
        "splits": _by_split(by_source.sum(axis=0)),
        "n_documents": n_documents,
        "n_duplicates": n_duplicates if dedup else None,  # None: not looked for
        "sources": [
            {"name": source.name, "size_bytes": None if source.dataset else source.size_bytes}
            | _by_split(counted)
            for source, counted in zip(sources, by_source, strict=True)
        ],
    }
    return Merged(files, counts, stats)


def _by_split(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return counts of shape (SPLITS, COUNTED) as meta.json has them."""
    rows = (dict(zip(COUNTED, row, strict=True)) for row in counts.tolist())
    return dict(zip(SPLITS, rows, strict=True))


def _blocks(shard: Shard) -> Iterator[Rows]:
    rows = shard.rows
    for start in range(0, len(rows), BLOCK_ROWS):
        yield np.array(rows[start : start + BLOCK_ROWS])


def _count(by_source: npt.NDArray[np.int64], task: Task, rows: Rows) -> None:
    places = np.array(task.global_indexes)[rows["source"]], rows["split"]
    columns = (np.ones(len(rows), np.int64), rows["n_bytes"], rows["n_tokens"])
    for i, column in enumerate(columns):
        np.add.at(by_source[..., i], places, column)


def _copy(
    path: Path, first_id: int, lengths: npt.NDArray[np.int64], kept: Flags, writer: TokenWriter
) -> None:
    """Append the ids of the rows that are kept, run by run of such rows."""
    ends = first_id + np.cumsum(lengths)
    starts = ends - lengths
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    with path.open("rb") as file:
        for first, last in edges.tolist():
            file.seek(int(starts[first]) * writer.dtype.itemsize)
            n_left = int(ends[last - 1] - starts[first]) * writer.dtype.itemsize
            while n_left:
                raw = file.read(min(n_left, COPY_BYTES))
                assert raw, f"{path} lacks {n_left} bytes"
                writer.add_ids(raw)
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
    """Return the places and hashes of those rows that belong to a bucket.

    The second halves of documents are hashed apart from the first.
    """
    keys = rows["hash"].copy()
    keys[:, 1] ^= (rows["first"] == 0).astype(np.uint64)
    chosen = np.flatnonzero(keys[:, 0] % np.uint64(n_buckets) == bucket)
    return chosen, keys[chosen]
