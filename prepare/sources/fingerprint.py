"""What a data set was made from, and so whether it has to be made again, and why."""

import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from common.dataset import open_data
from common.errors import DataError
from common.files import sha256_of
from prepare.config import PrepareConfig

OUTPUT_VERSION = 3  # another number: the same sources and options give other bytes than before
PACKAGES = ("numpy", "tiktoken", "gigatoken", "zstandard")


def fingerprint_of(states: Iterable[Any], config: PrepareConfig) -> dict[str, Any]:
    """Return all that decides the bytes, as meta.json keeps it.

    ``states`` are those of the sources, in order; byte ranges of one source have the same.
    """
    return {
        "recipe": OUTPUT_VERSION,
        "options": asdict(config),
        "vocabulary": sha256_of(path) if (path := Path(config.tokenizer)).is_file() else None,
        "sources": [state for state, _ in groupby(states)],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the bytes could depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def old_meta(out: Path) -> dict[str, Any] | None:
    """Return the meta.json of the data set that is there, or None where none is."""
    with suppress(DataError):
        return open_data(out).meta
    return None


def stale_reason(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return why the data are to be made again, or None when nothing changed since.

    A data set at the hub cannot be asked whether it changed; it is taken to be as it was.
    """
    if old.get("recipe") != new["recipe"]:
        return "this version of prepare writes other files"
    for name, value in new["options"].items():
        if old["options"].get(name) != value:
            option = "--" + name.replace("_", "-")
            return f"{option} was {old['options'].get(name)}, and is {value}"
    if old["vocabulary"] != new["vocabulary"]:
        return f"--tokenizer {new['options']['tokenizer']} is another file than it was"
    # sets: a source of which several tasks read a range each is listed as often
    before, now = ({json.dumps(state) for state in made["sources"]} for made in (old, new))
    if before != now:
        changed = sorted(now - before)
        first = json.loads(changed[0])[0] if changed else "one is gone"
        return f"{max(len(changed), 1):,} of the sources changed ({first})"
    for package in ("tiktoken", "gigatoken"):
        if old["versions"].get(package) != new["versions"].get(package):
            return (
                f"{package} was {old['versions'].get(package)}, is {new['versions'].get(package)}"
            )
    return None
