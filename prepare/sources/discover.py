"""What the person named -> the files to read, in an order that depends on nothing."""

import glob
import logging
import os
import re
import stat
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from common.errors import DataError
from prepare.sources.source import HIDDEN, LINK, NAMED, VAL, Progress, Source, SourceList

log = logging.getLogger(__name__)

Errors = dict[str, str]  # by path: what cannot be read, and why
ADVICE = "Get it back, or pass --on-error skip to go on without it."
# What the hub's data sets have: train-00000-of-00002.parquet, and a README with such a heading.
# Source: huggingface.co/docs/hub/datasets-cards
SPLIT_FILE = re.compile(rb"(?:.*/)?(train|test|validation|valid|val|dev)\b[^/]*\Z")
DATASET_CARD = re.compile(
    rb"---\s*\n(?:(?!---).*\n)*?(?:dataset_info|configs|license|pretty_name|\w+_categories):"
)
CARD_BYTES = 1 << 16
TABLES = (b".parquet", b".arrow", b".jsonl", b".json", b".csv")
HINT_FILES = 10_000  # looked at
FILE_NAMES = sys.getfilesystemencoding()
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
    hidden names, pipes and sockets, and the folder ``out``; links to nothing and folders that
    cannot be read are the last sources, with an ``error``. ``progress`` is told how many files more
    were found. Raise DataError for a path that is no file or folder, or a folder without a file.
    """
    found, n_places, has_stdin = SourceList(), 0, False
    errors: Errors = {}
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
                _add_folder(found, path, out, VAL * val, progress, errors)
                _hint_at_dataset(path, found.items[n_before : n_before + HINT_FILES])
                if len(found) == n_before and not errors:
                    raise DataError(f"{path}: holds no file. Name one with text or archives in it.")
            elif path.is_file():
                status, link = path.stat(), LINK * path.is_symlink()
                flags = NAMED | VAL * val | link
                found.add(os.fsencode(path), status.st_size, status.st_mtime_ns, flags)
                progress(1)
            elif path.exists():
                raise DataError(
                    f"{path}: neither a file nor a folder. A pipe can be read only once: give it "
                    "as standard input, with '-'."
                )
            else:
                raise DataError(f"{path}: no such file or folder. Check the path.")
    if n_places > 1 or any(flags & LINK for flags in set(found.flags)):
        found = _each_once(found)
    for name, error in sorted(errors.items()):
        found.append(Source(name=name, path=Path(name), named=False, error=f"{name}: {error}"))
    if stdin is None or not has_stdin:
        return found
    both = SourceList([stdin])
    both.extend(found)
    return both


def _add_folder(
    found: SourceList,
    folder: Path,
    out: Path | None,
    flags: int,
    progress: Progress,
    errors: Errors,
) -> None:
    """Add the files below a folder, in the order of their paths."""
    left_out = b""  # the folder ``out``, where it lies below this one
    if out is not None and (below := out.resolve()).is_relative_to(folder.resolve()):
        left_out = os.fsencode(folder / below.relative_to(folder.resolve())) + b"/"
    # for speed: what found.add does, a million times
    add_item, add_size, add_time, add_flags = (column.append for column in vars(found).values())
    # links to folders are not followed, so a loop of links ends
    unfinished = [iter(_entries(os.fsencode(folder), progress, errors))]
    while unfinished:
        for path, size, time, link in unfinished[-1]:
            if not path.endswith(b"/"):
                add_item(path)
                add_size(size)
                add_time(time)
                add_flags(flags | link)
            elif path != left_out:
                unfinished.append(iter(_entries(path[:-1], progress, errors)))
                break
        else:
            unfinished.pop()


def _entries(
    folder: bytes, progress: Progress, errors: Errors
) -> list[tuple[bytes, int, int, int]]:
    """Return path, size, time and flags of the files in a folder; a folder's path ends in '/'.

    So sorted, the paths of all that is below are in the order of their bytes.
    """
    prefix = b"" if folder == b"." else os.path.join(folder, b"")
    rows, n_told = [], 0
    try:
        with ExitStack() as stack:
            # by its descriptor, and names first looked at alone: of a million files a fifth less
            opened = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, opened)
            for entry in stack.enter_context(os.scandir(opened)):
                name = entry.name.encode(FILE_NAMES, "surrogateescape")  # os.fsencode, but quicker
                if name.startswith((b".", b"__")) and HIDDEN.match(name):
                    continue
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    rows.append((prefix + name, status.st_size, status.st_mtime_ns, 0))
                elif entry.is_dir(follow_symlinks=False):
                    rows.append((prefix + name + b"/", 0, 0, 0))
                elif entry.is_symlink():
                    rows += _link(prefix + name, errors)
                if len(rows) - n_told >= TOLD_FILES:
                    progress(len(rows) - n_told)
                    n_told = len(rows)
    except OSError as error:
        errors[_shown(folder)] = f"the folder cannot be read ({error.strerror}). {ADVICE}"
    progress(len(rows) - n_told)
    rows.sort()
    return rows


def _link(path: bytes, errors: Errors) -> list[tuple[bytes, int, int, int]]:
    """Return what ``_entries`` does for a symbolic link: only one to a file is followed."""
    try:
        status = os.stat(path)
    except OSError as error:
        errors[_shown(path)] = f"a link to what is not there ({error.strerror}). {ADVICE}"
        return []
    if stat.S_ISDIR(status.st_mode):
        where = os.fsdecode(path)
        log.warning("%s: a link to a folder, not followed: name it to read it too.", where)
    is_file = stat.S_ISREG(status.st_mode)
    return [(path, status.st_size, status.st_mtime_ns, LINK)] if is_file else []


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")


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


def _hint_at_dataset(folder: Path, files: list[bytes]) -> None:
    """Say how to read a clone from the hub: as a folder, its README and every split are text.

    Raise DataError for a folder that save_to_disk wrote: of it nothing is text.
    """
    one, several = (folder / name for name in ("dataset_info.json", "dataset_dict.json"))
    if several.is_file() or (one.is_file() and (folder / "state.json").is_file()):
        raise DataError(f"{folder}: a data set that save_to_disk wrote: pass --dataset {folder}")
    tables = [file for file in files if file.endswith(TABLES)]
    splits = sorted({match[1].decode() for file in tables if (match := SPLIT_FILE.match(file))})
    has_card = False
    if tables:
        with suppress(OSError), (folder / "README.md").open("rb") as readme:
            has_card = DATASET_CARD.match(readme.read(CARD_BYTES)) is not None
    if has_card or len(splits) > 1:
        log.warning(
            "%s: seems to be a data set of the Hugging Face hub. As a folder all its files are "
            "read, the README and every split%s; --dataset %s reads one split.",
            *(folder, f" ({', '.join(splits)})" if splits else "", folder),
        )
