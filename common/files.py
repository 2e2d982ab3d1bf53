"""Files that are whole or absent to every reader: write under another name, flush, rename."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO

from common.errors import CheckpointError

log = logging.getLogger(__name__)

FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS has it
WAITS_S = (5.0, 15.0, 40.0)  # for room on a full disk: about a minute, while a person sees to it


def fsync(path: Path) -> None:
    """Flush a file, or a folder's names: else a rename may not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def flush_to_disk(file: IO[Any] | RawIOBase) -> None:
    """Flush what was written into a file, to the disk."""
    file.flush()
    _sync(file.fileno())


def _sync(descriptor: int) -> None:
    """Have the disk hold what was written; macOS's fsync leaves it in the disk's own cache."""
    if FULL_SYNC is not None:
        with suppress(OSError):  # a file system that cannot, such as a network's
            fcntl.fcntl(descriptor, FULL_SYNC)
            return
    os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that a power cut takes none with what is flushed."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def drop_page_cache(path: Path) -> None:
    """Have the system forget what it holds of a flushed file: the next read is the disk's."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lock(folder: Path) -> int:
    """Lock a folder against other processes until the descriptor that is returned is closed.

    Raises BlockingIOError where another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    return descriptor


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Make a folder, hidden beside ``path``, to be renamed when it is whole; else it goes again.

    Raises CheckpointError where another process is at it.
    """
    folder = path.with_name(f".{path.name}.unfinished")  # no name that a person gives
    make_folder(folder)
    try:
        descriptor = lock(folder)
    except BlockingIOError as error:
        message = f"{path}: another process is writing it. Wait for it, or name another place."
        raise CheckpointError(message) from error
    try:
        for left in folder.iterdir():  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        # once it is renamed, another process may have made one of that name
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
    fsync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError say which file it is about, where it does not: writing has no name."""
    try:
        yield
    except OSError as error:
        if error.errno:  # else it is a sentence, as numpy's, which a name would take the place of
            error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing under another name; it appears, whole, when the block ends well."""
    if path.exists() and not path.is_file():  # a rename would put a file in place of /dev/null
        raise FileExistsError(errno.EEXIST, "it is there, and no file", str(path))
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with naming(path), unfinished.open("wb") as file:
            yield file
            flush_to_disk(file)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    fsync(path.parent)


@contextmanager
def whole_folder(path: Path, only: str = "") -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``path``, whole, when the block ends well.

    With ``only``, the file of that name in it does.
    """
    with unfinished_folder(path) as folder:
        yield folder
        mode = folder.stat().st_mode & 0o666  # what the umask gives: safetensors' own is 0600
        for written in folder.iterdir():  # by libraries that flush nothing
            written.chmod(mode)
            fsync(written)
        fsync(folder)
        os.rename(folder / only, path)


def wait_for_space(path: Path, write: Callable[[], object]) -> None:
    """Call what writes ``path``, again after each of WAITS_S while the disk is full."""
    for wait_s in WAITS_S:
        try:
            write()
            return
        except Exception as error:
            if not _is_disk_full(error):
                raise
        log.warning("%s: no space left on its disk: trying again in %g s", path, wait_s)
        time.sleep(wait_s)
    write()


def _is_disk_full(error: BaseException | None) -> bool:
    """Tell it of an error by what caused it first, or by its text, which safetensors' is alone."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or f"(os error {errno.ENOSPC})" in str(error)


def write_all(file: RawIOBase, content: bytes | memoryview) -> None:
    """Write the whole of ``content``, which one call to an unbuffered file may not."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step; a byte of a file's name that is not UTF-8 is escaped."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # as JSON does


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def wrong_size(path: Path, size_bytes: int, promised_by: str) -> str | None:
    """Return a sentence where a file is missing or has another size than was promised."""
    size = path.stat().st_size if path.exists() else None
    if size == size_bytes:
        return None
    found = "missing" if size is None else f"{size:,} bytes"
    return f"{path}: {found}, but {promised_by} promises {size_bytes:,} bytes."


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
