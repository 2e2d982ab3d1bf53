"""The index of a data folder: where in train.bin any run of ids stands, found in microseconds.

    train.sa         the positions in train.bin in the order of what begins there; uint32
    train.sa.json    the parts it consists of, and the SHA-256 of the train.bin that it is of

A part covers whole documents, so many that sorting them fits any memory; its positions count from
its first id. The order is that of the ids' bytes as they lie in the file, so that nothing is
converted to compare: any order will do for a search by halves. Both files stay where they are, and
are mapped: a search reads some fifty places.

Source: Manber and Myers 1993, Suffix arrays; Liu et al. 2024, Infini-gram (arXiv:2401.17377).
"""

import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.dataset import DataFolder
from common.errors import DataError
from common.files import wrong_size

SA_NAME, SA_META_NAME = "train.sa", "train.sa.json"
SA_FORMAT = 1
SA_DTYPE = np.dtype("<u4")
# Pages that were read count as memory of this process until they are given back. A search of a
# part reads some 50 places, and Linux maps 64 KB around each: so these are 100 MB at most.
SEARCHES_HELD = 32


@dataclass(frozen=True)
class Part:
    """Some documents of train.bin, and their positions in order."""

    ids: mmap.mmap  # the bytes of all ids
    positions: memoryview  # of uint32
    first: int  # the position of its first id in train.bin
    width: int  # bytes of an id

    def _key(self, n_bytes: int) -> Callable[[int], bytes]:
        ids, first, width = self.ids, self.first, self.width

        def bytes_from(position: int) -> bytes:
            at = (first + position) * width
            return ids[at : at + n_bytes]

        return bytes_from

    def occurs(self, pattern: bytes) -> bool:
        """Return whether the ids in ``pattern`` stand anywhere, one after another."""
        key = self._key(len(pattern))
        i = bisect_left(self.positions, pattern, key=key)
        return i < len(self.positions) and key(self.positions[i]) == pattern

    def longest(self, pattern: bytes) -> int:
        """Return how many ids from the beginning of ``pattern`` on stand somewhere in a row.

        Of all that is there the two neighbours of its place in the order have most in common.
        """
        key = self._key(len(pattern))
        i = bisect_left(self.positions, pattern, key=key)
        neighbours = (key(position) for position in self.positions[max(0, i - 1) : i + 1])
        return max((_n_alike(pattern, other, self.width) for other in neighbours), default=0)

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
        """Map it; raise DataError where there is none, or one of other ids."""
        bounds = _read_bounds(data)
        self._maps = [_map(data.path / name) for name in ("train.bin", SA_NAME)]
        ids, order = self._maps
        self.ids = np.frombuffer(ids, data.dtype)
        self.dtype = data.dtype
        positions = memoryview(order).cast("I")
        self.parts = [
            Part(ids, positions[first:end], first, self.dtype.itemsize)
            for first, end in pairwise(bounds)
        ]
        self._n_searches = 0

    def _searched(self) -> Iterator[Part]:
        for part in self.parts:
            yield part
            self._n_searches += 1
            if self._n_searches % SEARCHES_HELD == 0:
                self.release()

    def release(self) -> None:
        """Give back the pages that were read: they stay cached, but no longer count as ours."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def occurs(self, pattern: bytes) -> bool:
        """Return whether the ids in ``pattern``, as they lie in train.bin, stand anywhere."""
        return any(part.occurs(pattern) for part in self._searched())

    def longest(self, pattern: bytes) -> int:
        """Return how many ids from the beginning of ``pattern`` on stand somewhere in a row."""
        return max(part.longest(pattern) for part in self._searched())

    def count(self, pattern: bytes) -> int:
        """Return how often the ids in ``pattern`` stand in train.bin."""
        return sum(len(part.occurrences(pattern)) for part in self._searched())

    def places(self, pattern: bytes) -> Iterator[int]:
        """Yield the positions in train.bin from which the ids in ``pattern`` stand."""
        for part in self._searched():
            for i in part.occurrences(pattern):
                yield part.first + part.positions[i]


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # else each place would bring 128 KB around it from the disk
    return mapped


def _read_bounds(data: DataFolder) -> list[int]:
    """Return the positions between which the parts lie; raise DataError for an index of others."""
    path = data.path / SA_META_NAME
    advice = f"Make it: python -m prepare index {data.path}"
    if not path.exists():
        raise DataError(f"{data.path}: has no index. {advice}")
    try:
        meta = json.loads(path.read_bytes())
        version, made_of, bounds = meta["format"], meta["bin_sha256"], list(meta["bounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as an index's ({error}). {advice}") from error
    if version != SA_FORMAT:
        raise DataError(f"{path}: format {version}, but this version reads {SA_FORMAT}. {advice}")
    if made_of != data.meta["files"]["train.bin"]["sha256"]:
        raise DataError(
            f"{path}: the index of another train.bin, which was there before: its SHA-256 began "
            f"with {made_of[:12]}. {advice}"
        )
    n_bytes = data.n_tokens("train") * SA_DTYPE.itemsize
    if wrong := wrong_size(data.path / SA_NAME, n_bytes, SA_META_NAME):
        raise DataError(f"{wrong} {advice}")
    return bounds
