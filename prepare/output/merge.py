"""Parts, in the order of their tasks -> the files of data/.

Here alone is decided which of several equal documents stays: the first, in the order of sources.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dataset import SPLITS, Split, TokenWriter, token_dtype
from prepare.output.shard_writer import Part, ids_path, parts_of_task
from prepare.stats import Stats
from prepare.workers.tasks import Task, sources_of

BLOCK_TOKENS = 1 << 20
SORTED_ROWS = 2 << 20  # hashes sorted at a time, when equal documents are looked for

Rows = npt.NDArray[Any]  # of parts.ROW
Flags = npt.NDArray[np.bool_]
COUNTED = ("documents", "bytes", "tokens")


@dataclass
class Merged:
    """What the files hold."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: dict[Split, dict[str, int]] = field(default_factory=dict)
    by_source: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2, 3), np.int64))
    n_documents: int = 0
    n_duplicates: int = 0
    stats: Stats = field(default_factory=Stats)


def merge(
    tasks: list[Task], folder: Path, keys: Sequence[str], out: Path, vocab_size: int, *, dedup: bool
) -> Merged:
    """Write the unfinished .bin and .idx of both splits into ``out``; memory stays flat.

    ``folder`` holds the parts, ``keys`` names those of each task. With ``dedup`` documents equal to
    an earlier one are left out; they are counted either way.
    """
    dtype = token_dtype(vocab_size)
    parts = [parts_of_task(folder, key) for key in keys]
    repeated = find_repeated([part for task_parts in parts for part in task_parts])
    n_sources = len(sources_of(tasks))
    merged = Merged(by_source=np.zeros((n_sources, len(SPLITS), len(COUNTED)), np.int64))
    writers = [TokenWriter(out, split, dtype) for split in SPLITS]
    try:
        start = 0
        for task, key, task_parts in zip(tasks, keys, parts, strict=True):
            end = start + sum(map(_n_rows, task_parts))
            keep = ~repeated[start:end] if dedup else np.ones(end - start, bool)
            _count(merged, task, task_parts, keep, repeated[start:end])
            for number, (split, writer) in enumerate(zip(SPLITS, writers, strict=True)):
                path, size = ids_path(folder, key, split), task_parts[-1].manifest["sizes"][number]
                if keep.all():
                    writer.add_file(path, size)
                for lengths, kept, first_id in _rows_of(task_parts, number, keep):
                    if not keep.all() and size:
                        ids = np.memmap(path, dtype, mode="r")[first_id:]
                        _add_kept(ids, lengths, kept, writer)
                    writer.add_lengths(lengths[kept])
            merged.stats.add(Stats.from_json(task_parts[-1].manifest["findings"]))
            start = end
        for writer in writers:
            merged.files |= writer.finish()
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    totals = merged.by_source.sum(axis=0).tolist()
    merged.splits = {
        split: dict(zip(COUNTED, totals[i], strict=True)) for i, split in enumerate(SPLITS)
    }
    for number, writer in enumerate(writers):
        assert [writer.n_documents, writer.n_tokens] == [totals[number][0], totals[number][2]]
    return merged


def _n_rows(part: Part) -> int:
    return len(np.load(part.path.with_suffix(".npy"), mmap_mode="r"))


def _count(merged: Merged, task: Task, parts: list[Part], keep: Flags, repeated: Flags) -> None:
    start = 0
    for part in parts:
        rows = part.rows
        kept, again = keep[start : start + len(rows)], repeated[start : start + len(rows)]
        start += len(rows)
        is_first = rows["first"] == 1
        merged.n_duplicates += int((again & is_first).sum())
        merged.n_documents += int((kept & is_first).sum())
        places = task.first_source + rows["source"][kept], rows["split"][kept]
        for i, column in enumerate(
            [np.ones_like(places[0]), rows["n_bytes"][kept], rows["n_tokens"][kept]]
        ):
            np.add.at(merged.by_source[..., i], places, column)


def _rows_of(
    parts: list[Part], number: int, keep: Flags
) -> Iterator[tuple[npt.NDArray[np.int64], Flags, int]]:
    """Yield for each part, of its rows in one split, lengths, which are kept, and the first id."""
    start = first_id = 0
    for part in parts:
        rows = part.rows
        chosen = rows["split"] == number
        lengths = rows["n_tokens"][chosen]
        yield lengths, keep[start : start + len(rows)][chosen], first_id
        start += len(rows)
        first_id += int(lengths.sum())


def _add_kept(
    ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], kept: Flags, writer: TokenWriter
) -> None:
    """Append the ids of the rows that are kept, about BLOCK_TOKENS at a time."""
    ends = np.cumsum(lengths)
    first = start = 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, start + BLOCK_TOKENS)))
        end, chosen = int(ends[last - 1]), kept[first:last]
        if chosen.all():  # one row may be longer than a block
            for i in range(start, end, BLOCK_TOKENS):
                writer.add_ids(ids[i : min(end, i + BLOCK_TOKENS)])
        elif chosen.any():
            writer.add_ids(ids[start:end][np.repeat(chosen, lengths[first:last])])
        first, start = last, end


def find_repeated(parts: list[Part]) -> Flags:
    """Say of each row whether an earlier document had the same text.

    The rows are taken in shares by their hash, so that no more than about SORTED_ROWS of them are
    in memory at once.
    """
    counts = [_n_rows(part) for part in parts]
    repeated = np.zeros(sum(counts), bool)
    n_shares = -(-len(repeated) // SORTED_ROWS)
    for share in range(n_shares):
        chosen = [
            _hashes(part.rows, start, share, n_shares) for part, start in _starts(parts, counts)
        ]
        places = np.concatenate([place for place, _ in chosen])
        keys = np.concatenate([key for _, key in chosen])
        order = np.lexsort((places, keys[:, 1], keys[:, 0]))
        same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
        repeated[places[order[1:][same]]] = True
    return repeated


def _starts(parts: list[Part], counts: list[int]) -> Iterator[tuple[Part, int]]:
    start = 0
    for part, count in zip(parts, counts, strict=True):
        yield part, start
        start += count


def _hashes(
    rows: Rows, start: int, share: int, n_shares: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the places and hashes of those rows that belong to a share.

    The second halves of documents are hashed apart from the first, by their split.
    """
    keys = rows["hash"].copy()
    keys[:, 1] ^= (rows["first"] == 0).astype(np.uint64)
    chosen = np.flatnonzero(keys[:, 0] % np.uint64(n_shares) == share)
    return start + chosen, keys[chosen]
