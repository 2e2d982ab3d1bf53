"""What a data set was made from, as its meta.json keeps it: this tells whether to make it again."""

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import sha256_of
from prepare.sources.source import VAL, SourceList
from prepare.sources.vocabulary import vocabulary_file

OUTPUT_VERSION = 4  # another number: the same sources and options give other bytes than before
MAX_STATES = 1_000  # sources whose state is listed, so that the one that changed can be named
PACKAGES = ("numpy", "tiktoken", "gigatoken", "zstandard")


def fingerprint_of(sources: SourceList, options: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides the bytes, as meta.json keeps it: of many sources only a hash."""
    few = len(sources) <= MAX_STATES
    states: Any = [sources.state(i) for i in range(len(sources))] if few else _hash_of(sources)
    return {
        "recipe": OUTPUT_VERSION,
        "options": options,
        "vocabulary": sha256_of(path) if (path := vocabulary_file(options["tokenizer"])) else None,
        "sources": states,
        "versions": versions(),
    }


def _hash_of(sources: SourceList) -> dict[str, Any]:
    return {"n_sources": len(sources), "hash": sources.digest()}


def _hash_of_states(states: list[Any]) -> dict[str, Any]:
    """Return the same of files that are listed, as earlier versions did with any number."""
    files = SourceList()
    for name, val, _, _, _, [(size, time), *_] in (state for state in states if len(state) == 6):
        files.add(name.encode(), size, time, VAL * val)
    return _hash_of(files)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the bytes could depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def old_meta(out: Path) -> dict[str, Any] | None:
    """Return the meta.json of the data set that is there, or None where none is."""
    from common.dataset import open_data  # with numpy, after cli.py has set its threads

    with suppress(DataError):
        return open_data(out).meta
    return None


def stale_reason(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return why the data are to be made again, or None; a data set at the hub never changes."""
    if old.get("recipe") != new["recipe"]:
        return "this version of prepare writes other files"
    for name in {**old["options"], **new["options"]}:  # of prepare chats they are more
        was, value = (made["options"].get(name) for made in (old, new))
        if was != value:
            return f"--{name.replace('_', '-')} was {was}, and is {value}"
    if old["vocabulary"] != new["vocabulary"]:
        return f"--tokenizer {new['options']['tokenizer']} is another file than it was"
    was, are = old["sources"], new["sources"]
    if isinstance(was, list) and isinstance(are, dict):
        was = _hash_of_states(was)
    if was != are and (isinstance(was, dict) or isinstance(are, dict)):
        n_was, n_are = (len(m) if isinstance(m, list) else m["n_sources"] for m in (was, are))
        return f"the sources changed (they were {n_was:,}, and are {n_are:,})"
    if was != are:
        before, now = ({json.dumps(state) for state in states} for states in (was, are))
        changed = sorted(now - before)
        first = json.loads(changed[0])[0] if changed else "one is gone"
        return f"{max(len(changed), 1):,} of the sources changed ({first})"
    for package in ("tiktoken", "gigatoken"):
        was, is_now = (made["versions"].get(package) for made in (old, new))
        if was != is_now:
            return f"{package} was {was}, and is {is_now}"
    return None
