"""What the person named -> the files to read: paths, folders, standard input."""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError

Progress = Callable[[int], object]  # called with a count of bytes, as they are read from disk


@dataclass(frozen=True)
class Source:
    """One file to read; ``named`` when the person named it, not found in a folder."""

    name: str
    path: Path
    named: bool

    @property
    def size_bytes(self) -> int:
        """Size on disk."""
        return self.path.stat().st_size


def find_sources(
    paths: list[Path], *, stdin: Path | None = None, out: Path | None = None
) -> list[Source]:
    """Return the files to read, folders walked in sorted order; '-' is the file ``stdin``.

    Left out of a folder are hidden names, what is no file (pipes, sockets, links to nothing), and
    the folder ``out`` that is written to.

    Raises: DataError for a path that is no file or folder, or a folder without a single file.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        if path == Path("-") and stdin is not None:
            sources[path] = Source("standard input", stdin, named=True)
        elif path.is_dir():
            found = sorted(_files_below(path, out and out.resolve()))
            if not found:
                raise DataError(
                    f"{path}: holds no file. Name a folder with text or archives in it."
                )
            for file in found:
                sources.setdefault(file, Source(_printable(file), file, named=False))
        elif path.is_file():
            sources[path] = Source(_printable(path), path, named=True)
        elif path.exists():
            raise DataError(
                f"{path}: neither a file nor a folder. A pipe can be read only once: give it as "
                "standard input, with '-'."
            )
        else:
            raise DataError(f"{path}: no such file or folder. Check the path.")
    return list(sources.values())


def _files_below(folder: Path, out: Path | None) -> Iterator[Path]:
    # os.walk does not follow links to folders, so a loop of links ends
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() != out
        ]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}).") from error


def _printable(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


class CountedFile(io.FileIO):
    """A file that tells how many of its bytes were read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._progress = progress

    def readinto(self, buffer: Any) -> int | None:
        """Read into ``buffer`` and tell how much."""
        n_read = super().readinto(buffer)
        self._progress(n_read or 0)
        return n_read
