"""What the first pass decides: the vocabulary, and how documents are split into train and val."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from common.files import write_json
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer

# (task, document, bytes) of documents in several chunks; a list, as it is in JSON
Lengths: TypeAlias = list[list[int]]

FILE_NAME = "first-pass.json"


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
