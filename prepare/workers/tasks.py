"""The work cut into tasks: a source, a span of a big one, or several small ones in a row.

A task is known by a hash of all that decides its bytes, so what it wrote can be found again after
a kill, and is never taken for the work of other sources or options.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from common.errors import DataError
from prepare.sources.byte_ranges import byte_ranges
from prepare.sources.discover import Source

GROUP_BYTES = 4 << 20  # on disk: enough for what a task costs besides, small enough to share out


@dataclass(frozen=True, kw_only=True)
class Task:
    """Some sources in a row."""

    number: int  # of the task, in order
    first_source: int  # the place of its first source among all
    sources: tuple[Source, ...]
    states: tuple[Any, ...]  # of the sources, when the run began
    barred_from: float = 1.0  # what a sample of it need not hold: larger hashes do not fit any more

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(source.n_read for source in self.sources)

    def check_unchanged(self) -> None:
        """Raise DataError when a source is not what it was when the run began."""
        for source, state in zip(self.sources, self.states, strict=True):
            if source.state() != state:
                raise DataError(
                    f"{source.name}: changed while it was read. Run the same command again when "
                    "it is complete."
                )


def tasks_of(sources: list[Source]) -> list[Task]:
    """Cut a list of sources into tasks of at least GROUP_BYTES."""
    return [
        Task(
            number=number,
            first_source=first,
            sources=tuple(group),
            states=tuple(source.state() for source in group),
        )
        for number, (first, group) in enumerate(_groups(sources))
    ]


def _groups(sources: list[Source]) -> Iterator[tuple[int, list[Source]]]:
    group: list[Source] = []
    size = first = 0
    for place, source in enumerate(sources):
        group.append(source)
        size += source.size_bytes
        spans = [] if source.dataset else byte_ranges(source.path)
        if spans:
            if group[:-1]:
                yield first, group[:-1]
            for span in spans:
                yield place, [replace(source, span=span)]
            group, size, first = [], 0, place + 1
        elif size >= GROUP_BYTES or source.dataset:
            yield first, group
            group, size, first = [], 0, place + 1
    if group:
        yield first, group


def sources_of(tasks: list[Task]) -> list[Source]:
    """Return the sources that tasks were made of, spans put together again."""
    sources = (source for task in tasks for source in task.sources)
    return [replace(s, span=None) for s in sources if s.span is None or s.span[0] == 0]


def key_of(*parts: Any) -> str:
    """Return a name for what ``parts``, as JSON, describe."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
