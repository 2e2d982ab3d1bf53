"""What the person named -> the files and data sets to read, in an order that depends on nothing.

Of what they are a fingerprint is kept, which tells whether a data set has to be made again.

A large file of JSON lines becomes ranges of whole lines, so that several processes can read it. No
other file can be read from its middle: an archive has to be read from its beginning, and a plain
text is one document.
"""

import glob
import io
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import DataError
from common.files import sha256_of

log = logging.getLogger(__name__)

Progress = Callable[[int], object]  # called with a count of bytes, as they are read from disk

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
FIRST_LINE_BYTES = 1 << 16  # of a file of JSON lines, looked at
RANGE_BYTES = 64 << 20  # enough for what a task costs besides, and small enough to share out
BLOCK_BYTES = 1 << 16
OUTPUT_VERSION = 4  # another number: the same sources and options give other bytes than before
PACKAGES = ("numpy", "tiktoken", "gigatoken", "zstandard")


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
    byte_range: tuple[int, int] | None = None  # to read, where not the whole

    @property
    def size_bytes(self) -> int:
        """Size on disk; 0 for a data set."""
        return 0 if self.dataset else self.path.stat().st_size

    @property
    def n_read(self) -> int:
        """Bytes on disk that are read."""
        return self.byte_range[1] - self.byte_range[0] if self.byte_range else self.size_bytes

    def state(self) -> list[Any]:
        """Return what changes when the source does, as JSON: size and time, or hash."""
        known = [self.name, self.val, self.content, self.config, self.split]
        if self.content or (self.dataset and not self.path.is_dir()):
            return known
        try:
            files = sorted(self.path.rglob("*")) if self.dataset else [self.path]
            stats = [file.stat() for file in files]
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}).") from error
        return [*known, [[stat.st_size, stat.st_mtime_ns] for stat in stats]]


def find_sources(
    paths: list[Path],
    *,
    val_paths: Sequence[Path] = (),
    stdin: Source | None = None,
    out: Path | None = None,
) -> list[Source]:
    """Return the files to read, sorted by path, each once; '-' is ``stdin``.

    A path may be a file, a folder, or a pattern such as 'dumps/*.zst'. Left out of a folder are
    hidden names, what is no file (pipes, sockets, links to nothing), and the folder ``out``.
    Raise DataError for a path that is no file or folder, or a folder without a single file.
    """
    sources: dict[Path, Source] = {}

    def add(path: Path, *, named: bool, val: bool) -> None:
        if known := sources.get(path.resolve()):  # by another name, or in a folder, or as val
            path = min(path, known.path, key=os.fsencode)
            named, val = named or known.named, val or known.val
        name = os.fsencode(path).decode("utf-8", "replace")
        sources[path.resolve()] = Source(name=name, path=path, named=named, val=val)

    patterns = [(path, False) for path in paths] + [(path, True) for path in val_paths]
    for pattern, val in patterns:
        matches = [] if pattern.exists() else glob.glob(str(pattern), recursive=True)
        for path in [Path(match) for match in matches] or [pattern]:
            if path == Path("-") and stdin is not None:
                sources[path] = stdin
            elif path.is_dir():
                if out is not None and path.resolve() == out.resolve():
                    raise DataError(
                        f"{path}: is --out and a source: what is written there would be read the "
                        "next time. Choose another --out."
                    )
                found = list(_files_below(path, out and out.resolve()))
                if not found:
                    raise DataError(f"{path}: holds no file. Name one with text or archives in it.")
                for file in found:
                    add(file, named=False, val=val)
            elif path.is_file():
                add(path, named=True, val=val)
            elif path.exists():
                raise DataError(
                    f"{path}: neither a file nor a folder. A pipe can be read only once: give it "
                    "as standard input, with '-'."
                )
            else:
                raise DataError(f"{path}: no such file or folder. Check the path.")
    # standard input first: it lies under a name that is never the same
    return sorted(sources.values(), key=lambda s: b"" if s.content else os.fsencode(s.path))


def _files_below(folder: Path, out: Path | None) -> Iterator[Path]:
    # os.walk does not follow links to folders, so a loop of links ends
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        for path in [Path(parent, name) for name in folders]:
            if path.name.startswith(".") or path.resolve() == out:
                folders.remove(path.name)
            elif path.is_symlink():
                log.warning("%s: a link to a folder, not followed: name it to read it too.", path)
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}).") from error


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


def fingerprint_of(states: Iterable[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides the bytes, as meta.json keeps it; ranges of a source count once."""
    return {
        "recipe": OUTPUT_VERSION,
        "options": options,
        "vocabulary": sha256_of(path) if (path := Path(options["tokenizer"])).is_file() else None,
        "sources": [state for state, _ in groupby(states)],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the bytes could depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def old_meta(out: Path) -> dict[str, Any] | None:
    """Return the meta.json of the data set that is there, or None where none is."""
    from common.dataset import open_data  # with numpy, after cli.py has set its threads

    with suppress(DataError):
        return open_data(out).meta
    return None


def stale_reason(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return why the data are to be made again, or None; a data set at the hub never changes."""
    if old.get("recipe") != new["recipe"]:
        return "this version of prepare writes other files"
    for name, value in new["options"].items():
        if (was := old["options"].get(name)) != value:
            return f"--{name.replace('_', '-')} was {was}, and is {value}"
    if old["vocabulary"] != new["vocabulary"]:
        return f"--tokenizer {new['options']['tokenizer']} is another file than it was"
    # sets: a source of which several tasks read a range each is listed as often
    before, now = ({json.dumps(state) for state in made["sources"]} for made in (old, new))
    if before != now:
        changed = sorted(now - before)
        first = json.loads(changed[0])[0] if changed else "one is gone"
        return f"{max(len(changed), 1):,} of the sources changed ({first})"
    for package in ("tiktoken", "gigatoken"):
        was, is_now = (made["versions"].get(package) for made in (old, new))
        if was != is_now:
            return f"{package} was {was}, and is {is_now}"
    return None
