"""train.bin -> train.sa, the index by which a text is found in it (common/suffix_array.py)."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.dataset import DataFolder
from common.errors import DataError, defer_signals
from common.files import atomic_write, sha256_of, write_json
from common.suffix_array import SA_FORMAT, SA_META_NAME, SA_NAME, SuffixArray

PART_BYTES = 256 << 20  # of ids: sorting takes five times as much memory, 1.3 GB
COPY_BYTES = 1 << 20

NewProgress = Callable[[str, int], Callable[[int], object]]  # its name, and all bytes


def write_index(data: DataFolder, new_progress: NewProgress) -> bool:
    """Write the index of a data folder, whole or not at all; False where it is there already.

    Raise DataError where there is nothing to index, or the sorting ends before its time.
    """
    with _lock(data.path):
        with suppress(DataError):
            SuffixArray(data)
            return False
        _write(data, new_progress)
        return True


def _write(data: DataFolder, new_progress: NewProgress) -> None:
    if not data.n_tokens("train"):
        raise DataError(
            f"{data.path / 'train.bin'}: holds no tokens, so there is nothing to index."
        )
    width = data.dtype.itemsize
    bounds = _bounds(data, PART_BYTES // width)
    (data.path / SA_META_NAME).unlink(missing_ok=True)  # of other positions than will be there
    progress = new_progress("index", bounds[-1] * width)
    with (data.path / "train.bin").open("rb") as ids, atomic_write(data.path / SA_NAME) as out:
        for first, end in pairwise(bounds):
            os.lseek(ids.fileno(), first * width, os.SEEK_SET)
            _sort(ids, width, (end - first) * width, out)
            progress((end - first) * width)
    made_of = data.meta["files"]["train.bin"]["sha256"]
    sha256 = sha256_of(data.path / SA_NAME)
    index = {"format": SA_FORMAT, "bin_sha256": made_of, "bounds": bounds, "sha256": sha256}
    write_json(data.path / SA_META_NAME, index)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other indexings away from a data folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{folder}: another prepare index is at it. Wait for it."
                ) from error
        yield
    finally:
        os.close(descriptor)


def verify_index(data: DataFolder) -> None:
    """Raise DataError where the index is damaged; none, or one of other ids, is never searched."""
    try:
        SuffixArray(data)
    except DataError:
        return
    promised = json.loads((data.path / SA_META_NAME).read_bytes()).get("sha256")
    if sha256_of(data.path / SA_NAME) != promised:
        raise DataError(
            f"{data.path / SA_NAME}: its SHA-256 is not the one in {SA_META_NAME}: it changed "
            f"after it was written. Delete it and make it again: python -m prepare index "
            f"{data.path}"
        )


def _bounds(data: DataFolder, n_ids: int) -> list[int]:
    """Return where parts of at most ``n_ids`` begin, with documents, and where the last one ends.

    A document that is longer is a part by itself.
    """
    borders = data.document_bounds("train")
    bounds, document = [0], 0
    while bounds[-1] < borders[-1]:
        within = int(np.searchsorted(borders, bounds[-1] + n_ids, "right")) - 1
        document = max(document + 1, within)
        bounds.append(int(borders[document]))
    return bounds


def _sort(ids: BinaryIO, width: int, n_bytes: int, out: BinaryIO) -> None:
    """Write the positions of so many bytes from where ``ids`` stands, in order."""
    script = str(Path(__file__).with_name("sort_ids.py"))
    command = [sys.executable, "-P", script, str(width), str(n_bytes)]
    process = None
    try:
        with defer_signals():  # it does not hear Ctrl-C, which ends the waiting for it
            process = subprocess.Popen(
                command, stdin=ids, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert process.stdout is not None
        with process.stdout as order:
            shutil.copyfileobj(order, out, COPY_BYTES)
        code = process.wait()
    finally:
        if process is not None:
            process.kill()
            process.wait()
    if code:
        raise DataError(
            f"The process that sorts ended with {code}: it was killed, or there was no memory left "
            f"for it: it takes {5 * n_bytes / 1e9:.1f} GB. Run the same command again."
        )
