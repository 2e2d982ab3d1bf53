"""A file or data set to read, many of them in little memory, and the bytes of one.

A large file of JSON lines becomes ranges of whole lines, so that several processes can read it. No
other file can be read from its middle: an archive has to be read from its beginning, and a plain
text is one document.
"""

import io
import json
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import DataError

Progress = Callable[[int], object]  # called with a count of bytes, as they are read from disk

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
FIRST_LINE_BYTES = 1 << 16  # of a file of JSON lines, looked at
RANGE_BYTES = 64 << 20  # enough for what a task costs besides, and small enough to share out
BLOCK_BYTES = 1 << 16
# names of hidden files and folders, and of what macOS puts beside others; "." and ".." are none
HIDDEN = re.compile(rb"(?:^|/)(?:\.(?!\.?(?:/|$))|__MACOSX(?:/|$))")
# flags of a file: as Source's; its path is a symbolic link; it is not a whole file
NAMED, VAL, LINK, OTHER = 1, 2, 4, 8
VAL_ALONE = bytes(flags & VAL for flags in range(256))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file to read, or one data set of Hugging Face's ``datasets``."""

    name: str  # as it is shown
    path: Path
    named: bool = True  # by the person, not found in a folder
    val: bool = False  # one of --val-files
    content: str = ""  # SHA-256, where the file is only a copy of standard input
    dataset: bool = False  # ``path`` is its folder, or its name at the hub
    config: str | None = None  # of a data set
    split: str = "train"  # of a data set
    error: str = ""  # why what was found in a folder cannot be read
    byte_range: tuple[int, int] | None = None  # to read, where not the whole

    @property
    def size_bytes(self) -> int:
        """Size on disk; 0 for a data set, and for what cannot be read."""
        return 0 if self.dataset or self.error else self.path.stat().st_size

    @property
    def n_read(self) -> int:
        """Bytes on disk that are read."""
        return self.byte_range[1] - self.byte_range[0] if self.byte_range else self.size_bytes

    def state(self) -> list[Any]:
        """Return what changes when the source does, as JSON: size and time, or hash."""
        known = [self.name, self.val, self.content, self.config, self.split]
        if self.error:
            return [*known, self.error]
        if self.content or (self.dataset and not self.path.is_dir()):
            return known
        try:
            files = sorted(self.path.rglob("*")) if self.dataset else [self.path]
            stats = [file.stat() for file in files]
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}).") from error
        return [*known, [[stat.st_size, stat.st_mtime_ns] for stat in stats]]


class SourceList:
    """Sources in order, packed: a folder may hold millions of files.

    Of a file its path, size and time are kept; a Source is made of it when it is asked for.
    """

    def __init__(self, others: Iterable[Source] = ()) -> None:
        # paths of files; a Source, and its state then, of what is not a whole file
        self.items: list[Any] = []
        self.sizes, self.times = array("q"), array("q")  # bytes, ns: when they were found
        self.flags = bytearray()
        for source in others:
            self.append(source)

    def append(self, source: Source) -> None:
        """Add a data set, a byte range, standard input, or what cannot be read."""
        self.add((source, source.state()), source.n_read, 0, VAL * source.val | OTHER)

    def add(self, item: Any, size: int, time: int, flags: int) -> None:
        """Add the path of a file, and what is known of it."""
        self.items.append(item)
        self.sizes.append(size)
        self.times.append(time)
        self.flags.append(flags)

    def extend(self, other: "SourceList") -> None:
        """Add all of another list."""
        for column, more in zip(vars(self).values(), vars(other).values(), strict=True):
            column.extend(more)

    def take(self, indexes: Iterable[int]) -> "SourceList":
        """Return those at ``indexes``."""
        taken = SourceList()
        for i in indexes:
            taken.add(self.items[i], self.sizes[i], self.times[i], self.flags[i])
        return taken

    @property
    def others(self) -> list[Source]:
        """Those that are not a file that was found, without a Source of each that is."""
        if not any(flags & OTHER for flags in set(self.flags)):  # for speed: there are few
            return []
        return [item[0] for item in self.items if not isinstance(item, bytes)]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Source]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Source:
        item, flags = self.items[i], self.flags[i]
        if not isinstance(item, bytes):
            return item[0]  # type: ignore[no-any-return]
        name, path = item.decode("utf-8", "replace"), Path(os.fsdecode(item))
        return Source(name=name, path=path, named=bool(flags & NAMED), val=bool(flags & VAL))

    def is_val(self, i: int) -> bool:
        """Tell whether it is one of --val-files, without a Source made for it."""
        return bool(self.flags[i] & VAL)

    def state(self, i: int) -> list[Any]:
        """Return what ``Source.state`` was when the source was found."""
        item = self.items[i]
        if not isinstance(item, bytes):
            return item[1]  # type: ignore[no-any-return]
        source = self[i]
        return [source.name, source.val, "", None, source.split, [[self.sizes[i], self.times[i]]]]

    def digest(self) -> str:
        """Return a hash of all states."""
        names = self.items
        if self.others:
            names = [i if isinstance(i, bytes) else json.dumps(i[1]).encode() for i in names]
        hashed = blake2b(b"\0".join(names), digest_size=16)
        hashed.update(self.sizes.tobytes() + self.times.tobytes() + self.flags.translate(VAL_ALONE))
        return hashed.hexdigest()

    def byte_ranges(self, i: int) -> list["SourceList"]:
        """Return the ranges of a large file of JSON lines, each in a list; none of others."""
        if self.sizes[i] < 2 * RANGE_BYTES or not isinstance(self.items[i], bytes):
            return []
        source = self[i]
        return [SourceList([replace(source, byte_range=r)]) for r in byte_ranges(source.path)]

    def check_unchanged(self) -> None:
        """Raise DataError when one is not what it was when it was found."""
        for i, item in enumerate(self.items):
            if isinstance(item, bytes):
                try:
                    stat = os.stat(item)
                except OSError as error:
                    raise DataError(
                        f"{self[i].name}: cannot be read ({error.strerror})."
                    ) from error
                same = (stat.st_size, stat.st_mtime_ns) == (self.sizes[i], self.times[i])
            else:
                same = item[0].state() == item[1]
            if not same:
                raise DataError(
                    f"{self[i].name}: changed while it was read. Run the same command again when "
                    "it is complete."
                )


def is_hidden(path: str) -> bool:
    """Return whether a name in a path is hidden, inside an archive as in a folder."""
    return HIDDEN.search(path.encode("utf-8", "replace")) is not None


def byte_ranges(path: Path) -> list[tuple[int, int]]:
    """Return ranges of some RANGE_BYTES that make up a file of JSON lines; none for other files."""
    if path.suffix not in JSON_LINES_SUFFIXES or path.stat().st_size < 2 * RANGE_BYTES:
        return []
    with path.open("rb") as file:
        line = file.readline(FIRST_LINE_BYTES)
        is_lines = False
        with suppress(ValueError, RecursionError):  # packed, in another encoding, or pretty-printed
            record = json.loads(line.decode("utf-8-sig"))
            is_lines = line.endswith(b"\n") and isinstance(record, dict)
        if not is_lines:
            return []
        size = path.stat().st_size
        borders = [_line_from(file, position) for position in range(RANGE_BYTES, size, RANGE_BYTES)]
    return [(start, end) for start, end in pairwise([0, *borders, size]) if start < end]


def _line_from(file: BinaryIO, position: int) -> int:
    """Return where the first line begins that does not begin before ``position``."""
    file.seek(position - 1)
    while (part := file.readline(BLOCK_BYTES)) and not part.endswith(b"\n"):
        pass
    return file.tell()


class ReadCounter:
    """How many bytes of a source were read, whichever process reads it."""

    def __init__(self, progress: Progress) -> None:
        self.n_read = 0
        self._progress = progress

    def __call__(self, n_bytes: int) -> None:
        """Count so many more, and call ``progress``."""
        self.n_read += n_bytes
        self._progress(n_bytes)

    def detach(self) -> None:
        """Only count from now on: this is another process than the one that shows progress."""
        self._progress = lambda n_bytes: None


class ProgressFile(io.FileIO):
    """A file, or a range of its bytes, that calls ``progress`` with how many were read."""

    def __init__(
        self, path: Path, progress: Progress, byte_range: tuple[int, int] | None = None
    ) -> None:
        super().__init__(path)
        self._progress = progress
        start, self._end = byte_range or (0, sys.maxsize)
        self.seek(start)

    def readinto(self, buffer: Any) -> int | None:
        """Read into ``buffer``."""
        n_read = super().readinto(memoryview(buffer)[: max(0, self._end - self.tell())]) or 0
        self._progress(n_read)
        return n_read
