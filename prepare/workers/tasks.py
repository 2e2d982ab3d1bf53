"""The work cut into tasks: a source, a byte range of a big one, or several small ones in a row.

A task is known by a hash of all that decides its bytes, so what it wrote can be found again after
a kill, and is never taken for the work of other sources or options.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from common.errors import DataError
from prepare.chunks import Chunk, ChunkEnd, Stats
from prepare.sources.discover import Progress, Source

ReadSource = Callable[..., Iterator[Chunk]]  # documents.read_source, but for its config

GROUP_BYTES = 4 << 20  # on disk: enough for what a task costs besides, small enough to share out


@dataclass(frozen=True, kw_only=True)
class Task:
    """Some sources in a row."""

    number: int  # of the task, in order
    sources: tuple[Source, ...]  # byte ranges of one among them
    global_indexes: tuple[int, ...]  # of each, among the sources that the person named
    states: tuple[Any, ...]  # of each, when the run began
    size_bytes: int  # on disk, when the run began
    threshold: float = 1.0  # a sample of it needs no item of this unit hash or above

    def documents(
        self, read: ReadSource, stats: Stats, progress: Progress
    ) -> Iterator[tuple[int, bytes, ChunkEnd]]:
        """Yield the chunks of its documents, each with the index of its source in ``sources``.

        Raises: DataError when a source is not what it was when the run began.
        """
        self._check_unchanged()
        for source_index, source in enumerate(self.sources):
            for text, end in read(source, stats=stats, progress=progress):
                yield source_index, text, end
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        for source, state in zip(self.sources, self.states, strict=True):
            if source.state() != state:
                raise DataError(
                    f"{source.name}: changed while it was read. Run the same command again when "
                    "it is complete."
                )


def make_tasks(sources: list[Source]) -> list[Task]:
    """Group sources, or byte ranges of them, into tasks of at least GROUP_BYTES."""
    tasks: list[Task] = []
    group: list[tuple[int, Source, Any]] = []
    index, size_bytes = -1, 0
    for number, source in enumerate(sources, start=1):
        index += source.byte_range is None or source.byte_range[0] == 0
        group.append((index, source, source.state()))
        size_bytes += source.n_read
        if size_bytes >= GROUP_BYTES or source.dataset or number == len(sources):
            indexes, members, states = zip(*group, strict=True)
            tasks.append(
                Task(
                    number=len(tasks),
                    sources=members,
                    global_indexes=indexes,
                    states=states,
                    size_bytes=size_bytes,
                )
            )
            group, size_bytes = [], 0
    return tasks


def key_of(*parts: Any) -> str:
    """Return a name for what ``parts``, as JSON, describe."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
