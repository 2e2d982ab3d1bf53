"""Which file each document was in, and its number there: of a task, then of a data folder.

KEY.names    names of files, a line each, as common/dataset.py has them
KEY.runs     from which document on which file was read: see RUN; the last ends the one before it
"""

import shutil
from bisect import bisect_right
from contextlib import ExitStack
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dataset import NAME_DTYPE, NAMES_NAME, SPLITS
from common.files import flush_to_disk, write_all
from prepare.output.commit import Files
from prepare.sources.source import JSON_LINES_SUFFIXES
from prepare.workers.executor import Task

HELD_RUNS = 1 << 12  # in memory, before they are written
RUN = np.dtype(
    [
        ("document", "<i8"),  # its number in the task
        ("name", "<i8"),  # where the name of its file begins; -1 behind the last document
        ("number", "<i8"),  # of the document among the records of the file, from 1
    ]
)
JSON_LINES = tuple(suffix.encode() for suffix in JSON_LINES_SUFFIXES)
Flags = npt.NDArray[np.bool_]
Runs = npt.NDArray[Any]  # of RUN
Rows = npt.NDArray[Any]  # of a shard: shard.py


class RunWriter:
    """Notes which file a task's documents are in, as they come."""

    def __init__(self, names: RawIOBase, runs: RawIOBase) -> None:
        self._files = names, runs
        self._names: list[bytes] = []
        self._runs = [(0, 0, 1)]
        self._n_bytes = 0  # of names
        self._is_lines = False

    def begin_file(self, name: bytes, document: int) -> None:
        """Say which file ``document`` is in, and those after it."""
        self._end_file(document)
        line = name.replace(b"\n", b"\\n") + b"\n"
        self._names.append(line)
        self._add(document, self._n_bytes, 1)
        self._n_bytes += len(line)
        self._is_lines = name.endswith(JSON_LINES)

    def skip_record(self, document: int) -> None:
        """Count a record before ``document`` that is none."""
        first, name, number = self._runs[-1]
        self._add(document, name, number + document - first + 1)

    def finish(self, n_documents: int) -> None:
        """Write what is held, and what ends the last run."""
        self._end_file(n_documents)
        first, _, number = self._runs[-1]
        self._add(n_documents, -1, number + n_documents - first)
        self._write(0)

    def _end_file(self, document: int) -> None:
        """Take the number of a document that is alone in its file; not of a line: it has one."""
        first, name, number = self._runs[-1]
        if number == 1 and document == first + 1 and not self._is_lines:
            self._runs[-1] = (first, name, 0)

    def _add(self, document: int, name: int, number: int) -> None:
        self._runs.append((document, name, number))
        if len(self._runs) > HELD_RUNS:
            self._write(1)

    def _write(self, n_held: int) -> None:
        cut = len(self._runs) - n_held
        write_all(self._files[0], b"".join(self._names))
        write_all(self._files[1], np.array(self._runs[:cut], RUN).tobytes())
        self._names, self._runs = [], self._runs[cut:]


class NamesWriter(ExitStack):
    """Writes the names of a data folder's documents as its shards come, task by task."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._paths = [folder / f"{split}.names" for split in SPLITS] + [folder / NAMES_NAME]
        self._files = [self.enter_context(path.open("wb")) for path in self._paths]
        self._first_name = 0  # where those of the task begin
        self._n_records = 0  # of its file that were in the tasks before, where those are ranges
        self._n_of_task = 0  # of its last file
        self._document = -1  # the last one, in the task, that was added

    def begin_task(self, task: Task, names: Path, runs: Path) -> None:
        """Copy the names of the task's files; a range after the first goes on in the same file."""
        self._runs: Runs = np.memmap(runs, RUN, "r")
        self._document = -1
        byte_range = task.sources[0].byte_range
        if byte_range and byte_range[0] > 0:
            self._n_records += self._n_of_task
        else:
            self._first_name, self._n_records = self._files[-1].tell(), 0
            with names.open("rb") as file:
                shutil.copyfileobj(file, self._files[-1])
        self._n_of_task = int(self._runs[-1]["number"]) - 1

    def add(self, rows: Rows, kept: Flags) -> None:
        """Append the names of those rows of the task that are kept; a row may go on a document."""
        documents = self._document + np.cumsum(rows["first"], dtype=np.int64)
        self._document = int(documents[-1])
        first = bisect_right(self._runs["document"], documents[0]) - 1
        last = bisect_right(self._runs["document"], documents[-1])
        runs = np.array(self._runs[first:last])
        i = np.searchsorted(runs["document"], documents, "right") - 1
        entries = np.empty(len(documents), NAME_DTYPE)
        entries["name"] = self._first_name + runs["name"][i]
        entries["number"] = self._n_records + runs["number"][i] + documents - runs["document"][i]
        for split, file in zip(range(len(SPLITS)), self._files, strict=False):
            file.write(entries[kept & (rows["split"] == split)].tobytes())

    def finish(self) -> Files:
        """Flush all to disk."""
        for file in self._files:
            flush_to_disk(file)
        self.close()
        return {path.name: path for path in self._paths}
