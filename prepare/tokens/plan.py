"""What the first pass decides: the vocabulary, and which document is train and which is val.

The side is a pure function of a document's content. So the split is the same for any order of files
and on any machine, stays as it is when more documents come later, and exact duplicates never stand
on both sides.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from common.dataset import Split
from common.files import write_json
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer
from prepare.config import PrepareConfig

# Below this many documents a split by document is too coarse: one in ten of 30 says little.
MIN_DOCUMENTS = 1_000
FILE_NAME = "first-pass.json"

# (task, document, bytes) of documents in several chunks; a list, as it is in JSON
Lengths: TypeAlias = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How documents are encoded and split.

    It goes to other processes without its vocabulary, which they read from ``folder``: through a
    pipe, which does not hold it, each worker would begin only when the one before it is there to
    take it.
    """

    folder: Path
    tokenizer: Tokenizer
    rule: str  # hash, tail or files
    n_bytes: int  # of text, where all of it was read
    lengths: Lengths

    def __getstate__(self) -> dict[str, Any]:
        vocabulary = describe_tokenizer(self.tokenizer)
        return vars(self) | {"folder": self.folder.absolute(), "tokenizer": vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = load_tokenizer(state["folder"], state["tokenizer"])
        vars(self).update(state | {"tokenizer": tokenizer})

    def save(self, key: str) -> None:
        """Write it into ``folder``, under the ``key`` of the sources and options."""
        save_tokenizer(self.tokenizer, self.folder)
        state = self.__getstate__() | {"folder": None, "key": key}
        write_json(self.folder / FILE_NAME, state)

    @classmethod
    def load(cls, folder: Path, key: str) -> "Plan | None":
        """Read back what a run of the same sources and options saved before it was stopped."""
        try:
            state = json.loads((folder / FILE_NAME).read_bytes())
        except (OSError, ValueError):
            return None
        if state.pop("key") != key:
            return None
        tokenizer = load_tokenizer(folder, state["tokenizer"])
        return cls(**state | {"folder": folder, "tokenizer": tokenizer})


def unit_hash(digest: bytes, seed: int) -> float:
    """Return a number in [0, 1) that depends on nothing but a text's XXH3 of 128 bits and the seed.

    Source: XXH3, github.com/Cyan4973/xxHash, whose values no later version changes.
    """
    return xxhash.xxh3_64_intdigest(digest, seed) / 2**64


def split_of(digest: bytes, config: PrepareConfig) -> Split:
    """Return the side that a whole document of this XXH3 belongs to, where its content decides."""
    return "val" if unit_hash(digest, config.seed) < config.val_fraction else "train"


def tail_cut(n_bytes: int, val_fraction: float) -> int:
    """Return where the last tenth of a document of ``n_bytes`` begins, maybe in a character."""
    return int(n_bytes * (1 - val_fraction))


def character_at(text: bytes, cut: int) -> int:
    """Return where the first character begins that does not begin before ``cut``."""
    while cut < len(text) and text[cut] & 0xC0 == 0x80:  # a byte that continues a character
        cut += 1
    return cut


def split_document(
    text: bytes, digest: bytes, rule: str, config: PrepareConfig, *, val: bool
) -> list[tuple[Split, bytes]]:
    """Return the split, or the two splits, that a document belongs to, with its text there.

    ``digest`` is its XXH3; ``val``: it comes from one of --val-files.
    """
    if rule == "files":
        return [("val" if val else "train", text)]
    if rule == "hash":
        return [(split_of(digest, config), text)]
    cut = character_at(text, tail_cut(len(text), config.val_fraction))
    halves: list[tuple[Split, bytes]] = [("train", text[:cut]), ("val", text[cut:])]
    return [(split, part) for split, part in halves if part]
