"""What a power cut may leave on a disk, after any call, by what POSIX promises and no more.

What was written to a file and not flushed (fsync) may be there, missing, zeros, or there in part.
A name that was made, renamed or deleted is sure only once its folder was flushed; until then any
subset of such changes may have happened, in any order. A rename is one step: what it moves is under
its old name, under its new one, or, between two folders, under both; never under none.
"""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.calls import Action, Watch

ROOT = 0  # a file or folder goes by a number, as an inode's would come again
Tree = dict[str, bytes | None]  # of all paths: a file's content, None for a folder
Name = tuple[int, str]  # in the folder of this number


@dataclass(frozen=True)
class Renamed:
    """Names that were given and taken by one call: first those given, as sure as those taken."""

    given: tuple[tuple[Name, int], ...]
    taken: tuple[tuple[Name, int], ...]


@dataclass(frozen=True)
class Written:
    """The content of a file from here on; None: a new folder."""

    file: int
    content: bytes | None


@dataclass(frozen=True)
class Flushed:
    """A file or a folder that was flushed to disk."""

    number: int


@dataclass(frozen=True)
class Promised:
    """From here on nothing older than ``label`` may be found."""

    label: Any


Event = Renamed | Written | Flushed | Promised


class Recorder(Watch):
    """Notes what each call changed, by looking at all files after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = {root.stat().st_ino: ROOT}
        self._free = itertools.count(ROOT + 1)
        self.names, self.contents = self._look()
        self.first = dict(self.names), dict(self.contents)
        self.events: list[Event] = []

    def call(self, name: str, path: str, action: Action) -> Any:
        """Make the call, and note what is other than it was."""
        self.look()  # what native code wrote before it
        number = None
        if name == "fsync":
            number = self._numbers.get(os.stat(path).st_ino)
        result = action()
        self.look(at_once=name in ("rename", "replace"))
        if number is not None:
            self.events.append(Flushed(number))
        return result

    def promise(self, label: Any) -> None:
        """Note what is sure from here on."""
        self.look()
        self.events.append(Promised(label))

    def look(self, *, at_once: bool = False) -> None:
        """Note what changed since the last look: names ``at_once``, or each for itself."""
        before_names, before = self.names, self.contents
        self.names, self.contents = self._look()
        given = [each for each in self.names.items() if each not in before_names.items()]
        taken = [each for each in before_names.items() if each[0] not in self.names]
        folders = {number for _, number in given} - before.keys()
        self.events += [Written(each, None) for each in folders if self.contents[each] is None]
        if at_once:
            self.events.append(Renamed(tuple(given), tuple(taken)))
        else:
            self.events += [Renamed((each,), ()) for each in given]
            self.events += [Renamed((), (each,)) for each in taken]
        for file, content in self.contents.items():
            if content is not None and content != before.get(file, b""):
                self.events.append(Written(file, content))

    def _look(self) -> tuple[dict[Name, int], dict[int, bytes | None]]:
        names: dict[Name, int] = {}
        contents: dict[int, bytes | None] = {ROOT: None}
        numbers = {self.root.stat().st_ino: ROOT}
        waiting = [(ROOT, self.root)]
        while waiting:
            folder, path = waiting.pop()
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                inode = entry.inode()
                number = self._numbers.get(inode)
                number = next(self._free) if number is None else number
                names[folder, entry.name] = numbers[inode] = number
                if entry.is_dir(follow_symlinks=False):
                    contents[number] = None
                    waiting.append((number, Path(entry.path)))
                else:
                    with os.fdopen(os.open(entry.path, os.O_RDONLY), "rb") as file:
                        contents[number] = file.read()
        self._numbers = numbers
        return names, contents


@dataclass(frozen=True)
class Crash:
    """A disk after a power cut, and the last promise that was made before it."""

    tree: Tree
    promised: Any

    @property
    def key(self) -> str:
        """A hash of all names and contents."""
        return hashlib.sha256(repr(sorted(self.tree.items())).encode()).hexdigest()


def damaged(sure: bytes, latest: bytes) -> list[bytes]:
    """Return what a file may hold that was flushed as ``sure`` and then became ``latest``."""
    differ = (i for i, (a, b) in enumerate(zip(sure, latest, strict=False)) if a != b)
    n_same = next(differ, min(len(sure), len(latest)))
    half = (n_same + len(latest)) // 2
    zeros = bytes(len(latest) - n_same)
    found = [sure, latest[:half], latest[:n_same] + zeros]
    found += [latest[:half] + bytes(len(latest) - half), latest[:n_same]]  # begun only; cut
    found += [latest[:n_same] + zeros[: half - n_same] + latest[half:]]  # a hole in the middle
    return list(dict.fromkeys(each for each in found if each != latest))


class Disk:
    """What is sure of a disk, and what is not, as events come."""

    def __init__(self, names: dict[Name, int], contents: dict[int, bytes | None]) -> None:
        self.names, self.sure = dict(names), dict(contents)
        self.latest: dict[int, bytes] = {}  # of files that were not flushed since
        self.pending: list[Renamed] = []
        self.sure_folders: list[set[int]] = []  # flushed since, for each of these

    def add(self, event: Event) -> None:
        """Heed what happened."""
        match event:
            case Renamed():
                self.pending.append(event)
                self.sure_folders.append(set())
                for _, number in event.given:
                    self.sure.setdefault(number, b"")
            case Written(file, None):
                self.sure[file] = None
            case Written(file, content):
                self.latest[file] = content or b""
            case Flushed(number):
                if number in self.latest:
                    self.sure[number] = self.latest.pop(number)
                for folders in self.sure_folders:
                    folders.add(number)
        while self.pending and self._choices(0) == ["all"]:
            self._apply(self.names, self.pending.pop(0), "all")
            self.sure_folders.pop(0)

    def _choices(self, i: int) -> list[str]:
        """Return how much of a change of names may have happened."""
        event, folders = self.pending[i], self.sure_folders[i]
        given_is_sure = any(name[0] in folders for name, _ in event.given)
        taken_is_sure = all(name[0] in folders for name, _ in event.taken)
        if not event.given:
            return ["all"] if taken_is_sure else ["none", "all"]
        crosses = {name[0] for name, _ in event.given} != {name[0] for name, _ in event.taken}
        if event.taken and any(name[0] in folders for name, _ in event.taken):
            return ["all"]  # what was taken away must be under its other name
        partly = ["given"] if event.taken and crosses else []
        return [*partly, "all"] if given_is_sure else ["none", *partly, "all"]

    @staticmethod
    def _apply(names: dict[Name, int], event: Renamed, how: str) -> None:
        if how != "none":
            names.update(event.given)
        if how == "all":
            for name, number in event.taken:
                if names.get(name) == number:
                    del names[name]

    def trees(self, at_most: int, drawn: random.Random) -> Iterator[Tree]:
        """Yield what may be found after a power cut: all of it, or ``at_most`` drawn from it."""
        slots: list[list[Any]] = [self._choices(i) for i in range(len(self.pending))]
        files = [file for file in self.latest if self.latest[file] != self.sure[file]]
        slots += [[self.latest[file], *damaged(self.sure[file] or b"", self.latest[file])]
                  for file in files]  # fmt: skip
        n_all = 1
        for slot in slots:
            n_all *= len(slot)
        chosen: Iterator[tuple[Any, ...]] = itertools.product(*slots)
        if n_all > at_most:
            chosen = iter([tuple(drawn.choice(slot) for slot in slots) for _ in range(at_most)])
        for choice in chosen:
            names, contents = dict(self.names), {**self.sure, **self.latest}
            for event, how in zip(self.pending, choice, strict=False):
                self._apply(names, event, how)
            contents.update(zip(files, choice[len(self.pending) :], strict=True))
            yield self._tree(names, contents)

    @staticmethod
    def _tree(names: dict[Name, int], contents: dict[int, bytes | None]) -> Tree:
        below: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in names.items():
            below.setdefault(folder, []).append((name, number))
        tree: Tree = {}
        waiting = [(ROOT, "")]
        while waiting:
            folder, path = waiting.pop()
            for name, number in below.get(folder, ()):
                tree[path + name] = contents[number]
                if contents[number] is None:
                    waiting.append((number, f"{path}{name}/"))
        return tree


def crashes(recorder: Recorder, promised: Any, at_most: int, seed: int) -> Iterator[Crash]:
    """Yield what a power cut may leave after each event, ``at_most`` of each."""
    disk, drawn = Disk(*recorder.first), random.Random(seed)
    for event in recorder.events:
        if isinstance(event, Promised):
            promised = event.label
        else:
            disk.add(event)
        for tree in disk.trees(at_most, drawn):
            yield Crash(tree, promised)


def write_tree(tree: Tree, root: Path) -> None:
    """Make a folder look like ``tree``."""
    root.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
