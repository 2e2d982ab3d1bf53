"""Files that are either whole or absent: write under another name, flush to disk, rename.

A reader never meets half a file: until the rename it sees the old one, or none.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO


def fsync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk: without it a rename may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def drop_page_cache(path: Path) -> None:
    """Let the system forget what it holds of a flushed file: the next read is the disk's.

    Only Linux can be told so; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing under another name; it appears, whole, when the block ends well."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)
    fsync_folder(path.parent)


def write_all(file: RawIOBase, content: bytes | memoryview) -> None:
    """Write the whole of ``content``, which one call to an unbuffered file may not."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        # a byte of a file's name that is not UTF-8 becomes the escape that JSON has for it
        file.write(text.encode("utf-8", "backslashreplace"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
