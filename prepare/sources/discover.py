"""What the person named -> the files to read, in an order that depends on nothing."""

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError
from prepare.sources.source import LINK, NAMED, VAL, Progress, Source, SourceList

log = logging.getLogger(__name__)

TOLD_FILES = 1_000  # found in one folder, before progress is told


def find_sources(
    paths: list[Path],
    *,
    val_paths: Sequence[Path] = (),
    stdin: Source | None = None,
    out: Path | None = None,
    progress: Progress = lambda n_files: None,
) -> SourceList:
    """Return the files to read, sorted by path, each once; '-' is ``stdin``, and the first.

    A path may be a file, a folder, or a pattern such as 'dumps/*.zst'. Left out of a folder are
    hidden names, what is no file (pipes, sockets, links to nothing), and the folder ``out``.
    ``progress`` is told how many files more were found. Raise DataError for a path that is no file
    or folder, or a folder without a single file.
    """
    found, n_places, has_stdin = SourceList(), 0, False
    patterns = [(path, False) for path in paths] + [(path, True) for path in val_paths]
    for pattern, val in patterns:
        matches = [] if pattern.exists() else glob.glob(str(pattern), recursive=True)
        for path in [Path(match) for match in matches] or [pattern]:
            n_before, n_places = len(found), n_places + 1
            if path == Path("-") and stdin is not None:
                has_stdin = True
            elif path.is_dir():
                if out is not None and path.resolve() == out.resolve():
                    raise DataError(
                        f"{path}: is --out and a source: what is written there would be read the "
                        "next time. Choose another --out."
                    )
                _add_folder(found, path, out, VAL * val, progress)
                if len(found) == n_before:
                    raise DataError(f"{path}: holds no file. Name one with text or archives in it.")
            elif path.is_file():
                stat, link = path.stat(), LINK * path.is_symlink()
                flags = NAMED | VAL * val | link
                found.add(os.fsencode(path), stat.st_size, stat.st_mtime_ns, flags)
            elif path.exists():
                raise DataError(
                    f"{path}: neither a file nor a folder. A pipe can be read only once: give it "
                    "as standard input, with '-'."
                )
            else:
                raise DataError(f"{path}: no such file or folder. Check the path.")
    if n_places > 1 or any(flags & LINK for flags in found.flags):
        found = _each_once(found)
    if stdin is None or not has_stdin:
        return found
    both = SourceList([stdin])
    both.extend(found)
    return both


def _add_folder(
    found: SourceList, folder: Path, out: Path | None, flags: int, progress: Progress
) -> None:
    """Add the files below a folder, in the order of their paths."""
    left_out = b""  # the folder ``out``, where it lies below this one
    if out is not None and (below := out.resolve()).is_relative_to(folder.resolve()):
        left_out = os.fsencode(folder / below.relative_to(folder.resolve())) + b"/"
    # links to folders are not followed, so a loop of links ends
    unfinished = [iter(_entries(os.fsencode(folder), progress))]
    while unfinished:
        for path, size, time, link in unfinished[-1]:
            if not path.endswith(b"/"):
                found.add(path, size, time, flags | link)
            elif path != left_out:
                unfinished.append(iter(_entries(path[:-1], progress)))
                break
        else:
            unfinished.pop()


def _entries(folder: bytes, progress: Progress) -> list[tuple[bytes, int, int, int]]:
    """Return path, size, time and flags of the files in a folder; a folder's path ends in '/'.

    So sorted, the paths of all that is below are in the order of their bytes.
    """
    prefix = b"" if folder == b"." else os.path.join(folder, b"")
    rows, n_told = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    rows.append((prefix + name, stat.st_size, stat.st_mtime_ns, 0))
                elif entry.is_dir(follow_symlinks=False):
                    rows.append((prefix + name + b"/", 0, 0, 0))
                elif entry.is_symlink():
                    rows += _link(prefix + name)
                if len(rows) - n_told >= TOLD_FILES:
                    progress(len(rows) - n_told)
                    n_told = len(rows)
    except OSError as error:
        where = os.fsdecode(error.filename or folder)
        raise DataError(f"{where}: the folder cannot be read ({error.strerror}).") from error
    progress(len(rows) - n_told)
    rows.sort()
    return rows


def _link(path: bytes) -> list[tuple[bytes, int, int, int]]:
    """Return what ``_entries`` does for a symbolic link: only one to a file is followed."""
    if os.path.isdir(path):
        log.warning(
            "%s: a link to a folder, not followed: name it to read it too.", os.fsdecode(path)
        )
    if not os.path.isfile(path):
        return []
    stat = os.stat(path)
    return [(path, stat.st_size, stat.st_mtime_ns, LINK)]


def _each_once(found: SourceList) -> SourceList:
    """Return the sources sorted by path; a file of several paths is under the first of them."""
    folders: dict[bytes, bytes] = {}  # without links in their paths
    kept: dict[bytes, int] = {}
    for i, path in enumerate(found.items):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        is_link = found.flags[i] & LINK
        key = os.path.realpath(path) if is_link else os.path.join(folders[folder], name)
        if (other := kept.setdefault(key, i)) != i:
            flags = found.flags[i] | found.flags[other]  # named, or of val, by one of its paths
            kept[key] = first = min(i, other, key=found.items.__getitem__)
            found.flags[first] = flags
    return found.take(sorted(kept.values(), key=found.items.__getitem__))
