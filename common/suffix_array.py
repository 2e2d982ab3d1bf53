"""The index of a data folder: where in train.bin any run of ids stands, found in microseconds.

    train.sa         the positions in train.bin in the order of what begins there; uint32
    train.sa.json    the parts it consists of, its SHA-256, and that of the train.bin that it is of

A part covers whole documents, so many that sorting them fits any memory; its positions count from
its first id. The order is that of the ids' bytes as they lie in the file, so that nothing is
converted to compare: any order will do for a search by halves. Nothing is loaded: a search reads
some fifty places of both files.

Source: Manber and Myers 1993, Suffix arrays; Liu et al. 2024, Infini-gram (arXiv:2401.17377).
"""

import json
import os
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.dataset import IDX_HEADER, DataFolder
from common.errors import DataError
from common.files import wrong_size

SA_NAME, SA_META_NAME = "train.sa", "train.sa.json"
SA_FORMAT = 1
SA_DTYPE = np.dtype("<u4")


class FileNumbers:
    """Numbers in a file, little-endian and unsigned, each read where it is asked for.

    Mapped, a search would take twice as long, and the pages around each place would stay in memory.
    """

    def __init__(self, descriptor: int, offset: int, count: int, width: int) -> None:
        self._place = descriptor, offset, width
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> int:
        descriptor, offset, width = self._place
        return int.from_bytes(os.pread(descriptor, width, offset + i * width), "little")


@dataclass(frozen=True)
class Part:
    """Some documents of train.bin, and their positions in order.

    A ``pattern`` is ids in a row, as the bytes that they have in train.bin.
    """

    ids: int  # descriptor of train.bin
    positions: FileNumbers
    first: int  # the position of its first id in train.bin
    width: int  # bytes of an id

    def _key(self, n_bytes: int) -> Callable[[int], bytes]:
        ids, first, width, pread = self.ids, self.first, self.width, os.pread
        return lambda position: pread(ids, n_bytes, (first + position) * width)

    def occurs(self, pattern: bytes) -> bool:
        """Return whether ``pattern`` stands anywhere."""
        key = self._key(len(pattern))
        i = bisect_left(self.positions, pattern, key=key)
        return i < len(self.positions) and key(self.positions[i]) == pattern

    def longest(self, pattern: bytes) -> int:
        """Return how many ids from the beginning of ``pattern`` on stand somewhere in a row.

        Of all that is there the two neighbours of its place in the order have most in common.
        """
        key = self._key(len(pattern))
        i = bisect_left(self.positions, pattern, key=key)
        neighbours = range(max(0, i - 1), min(i + 1, len(self.positions)))
        found = (_n_alike(pattern, key(self.positions[j]), self.width) for j in neighbours)
        return max(found, default=0)

    def occurrences(self, pattern: bytes) -> range:
        """Return where in the order the places stand that begin with ``pattern``."""
        key = self._key(len(pattern))
        i = bisect_left(self.positions, pattern, key=key)
        return range(i, bisect_right(self.positions, pattern, i, key=key))


def _n_alike(one: bytes, other: bytes, width: int) -> int:
    n_bytes = min(len(one), len(other)) // width * width
    dtype = np.dtype(f"u{width}")
    differs = np.frombuffer(one[:n_bytes], dtype) != np.frombuffer(other[:n_bytes], dtype)
    return int(differs.argmax()) if differs.any() else len(differs)


class SuffixArray:
    """The index of a data folder, open."""

    def __init__(self, data: DataFolder) -> None:
        """Open it; raise DataError where there is none, or one of other ids."""
        bounds = _read_bounds(data)
        self.dtype, self.n_tokens = data.dtype, bounds[-1]
        self._ids, order, idx = (
            _open_for_places(self, data.path / name) for name in ("train.bin", SA_NAME, "train.idx")
        )
        width = self.dtype.itemsize
        self.parts = [
            Part(self._ids, FileNumbers(order, 4 * first, end - first, 4), first, width)
            for first, end in pairwise(bounds)
        ]
        n_documents = data.meta["splits"]["train"]["documents"]
        # bytes; behind the lengths
        self._starts = FileNumbers(idx, IDX_HEADER.size + 4 * n_documents, n_documents, 8)

    def places(self, pattern: bytes) -> Iterator[int]:
        """Yield the positions in train.bin at which ``pattern`` stands."""
        for part in self.parts:
            for i in part.occurrences(pattern):
                yield part.first + part.positions[i]

    def document_at(self, place: int) -> tuple[int, int, int]:
        """Return the number of the document at a position, and between which it stands."""
        width = self.dtype.itemsize
        number = bisect_right(self._starts, place * width) - 1
        is_last = number + 1 == len(self._starts)
        end = self.n_tokens if is_last else self._starts[number + 1] // width
        return number, self._starts[number] // width, end

    def ids(self, first: int, last: int) -> list[int]:
        """Return the ids between two positions."""
        width = self.dtype.itemsize
        raw = os.pread(self._ids, (last - first) * width, first * width)
        return list(np.frombuffer(raw, self.dtype).tolist())


def _open_for_places(owner: object, path: Path) -> int:
    """Open a file of which single places are read, as long as ``owner`` is there."""
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    if hasattr(os, "posix_fadvise"):  # else each place would bring those around it from the disk
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def _read_bounds(data: DataFolder) -> list[int]:
    """Return the positions between which the parts lie; raise DataError for an index of others."""
    path = data.path / SA_META_NAME
    advice = f"Make it: python -m prepare index {data.path}"
    if not path.exists():
        raise DataError(f"{data.path}: has no index. {advice}")
    try:
        meta = json.loads(path.read_bytes())
        version, made_of, bounds = meta["format"], meta["bin_sha256"], list(meta["bounds"])
        if bounds != sorted({0, *bounds}):
            raise ValueError("its bounds are not in order")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as an index's ({error}). {advice}") from error
    if version != SA_FORMAT:
        raise DataError(f"{path}: format {version}, but this version reads {SA_FORMAT}. {advice}")
    if made_of != data.meta["files"]["train.bin"]["sha256"]:
        raise DataError(
            f"{path}: the index of another train.bin, which was there before: its SHA-256 began "
            f"with {made_of[:12]}. {advice}"
        )
    n_bytes = bounds[-1] * SA_DTYPE.itemsize
    if wrong := wrong_size(data.path / SA_NAME, n_bytes, SA_META_NAME):
        raise DataError(f"{wrong} {advice}")
    return bounds
