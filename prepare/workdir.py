"""The folder of unfinished work, data/.unfinished: one run's alone, and gone when that is done."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from common.errors import DataError
from prepare.config import PrepareConfig
from prepare.workers.executor import Task

NAME = ".unfinished"
# For the estimate of disk space; low, so that nothing is refused that would fit.
EXPANSION = 3  # bytes of text in a byte of a packed file
PACKED_SUFFIXES = (".xz", ".zst", ".gz", ".bz2", ".zip", ".parquet")
BYTES_PER_ID = 5  # of byte pairs; characters have one or more
LOCK_SECONDS = 2.0  # what helps a killed run holds its lock too, and ends with what it is at
POLL_SECONDS = 0.05


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Lock the folder in ``out``; it stays where a run is stopped that can be resumed.

    Raises: DataError when another run has locked it, or ``out`` cannot be written.
    """
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out / NAME) as work:
            try:
                yield work
            except BaseException:
                if not _resumable(work):
                    shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work)
    except OSError as error:  # those of reading are DataErrors already
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        if not existed:
            with suppress(OSError):  # not empty
                out.rmdir()


def _resumable(work: Path) -> list[Path]:
    return [*work.glob("*.json"), *work.glob("*.sample")]


def discard_resumable(work: Path) -> None:
    """Leave nothing that a later run would resume from."""
    for path in _resumable(work):
        path.unlink()


def remove_work(out: Path) -> None:
    """Remove what a run left that was killed when all but this was done."""
    if (out / NAME).exists():
        with work_folder(out):
            pass


@contextmanager
def _locked(work: Path) -> Iterator[Path]:
    deadline = time.monotonic() + LOCK_SECONDS
    while (lock := _lock(work)) is None:
        if time.monotonic() > deadline:
            raise DataError(
                f"{work.parent}: another prepare is writing there. Wait for it, or choose another "
                "--out."
            )
        time.sleep(POLL_SECONDS)
    with lock:
        yield work


def _lock(work: Path) -> TextIO | None:
    """Lock the folder; return None where another run has locked it."""
    try:
        work.mkdir(exist_ok=True)
        lock = (work / "lock").open("w")
    except FileNotFoundError:  # the other one ended just now, and took its folder with it
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_nlink:  # 0: of a folder that is gone
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


def check_space(work: Path, tasks: list[Task], config: PrepareConfig, n_bytes: int) -> None:
    """Refuse to begin what the disk has no room for: shards, then the files made of them.

    ``n_bytes``: of text, 0 where that is not known.

    Raises: DataError with both numbers.
    """
    n_text = n_bytes or sum(
        source.n_read * (EXPANSION if source.path.suffix in PACKED_SUFFIXES else 1)
        for task in tasks
        for source in task.sources
    )
    per_id = 1 if config.tokenizer == "char" else BYTES_PER_ID
    n_copies = 2 - 1 / max(1, len(tasks))  # the ids of the first shard are not copied
    there = sum(file.stat().st_size for file in work.glob("*.bin"))
    needed = int(2 * n_copies * n_text / per_id) - there
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DataError(
            f"{work.parent}: about {needed / 1e9:,.1f} GB are needed there, but {free / 1e9:,.1f} "
            "GB are free. Free some, or choose another --out."
        )
