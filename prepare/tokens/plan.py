"""What the first pass decides: the vocabulary, and how documents are split into train and val."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.files import write_json
from common.tokenizer import (
    CharTokenizer,
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from prepare.config import PrepareConfig
from prepare.tokens.sample import CorpusSample, Lengths, training_texts
from prepare.tokens.split import MIN_DOCUMENTS
from prepare.tokens.train_bpe import parse_vocab_size, train_bpe

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


def make_plan(
    folder: Path,
    sample: CorpusSample,
    published: Tokenizer | None,
    config: PrepareConfig,
    *,
    val_files: bool,
) -> Plan:
    """Choose how documents are split, and learn a vocabulary where none is ``published``."""
    rule: str = config.split_rule
    if val_files:
        rule, config = "files", replace(config, val_fraction=0)
    elif rule == "auto":
        rule = "hash" if sample.n_documents >= MIN_DOCUMENTS else "tail"
    if published is not None:
        tokenizer = published
    elif config.tokenizer == "char":
        tokenizer = CharTokenizer(tuple(sorted(sample.characters)))
    else:
        n_train_bytes = int(sample.n_bytes * (1 - config.val_fraction))
        vocab_size = parse_vocab_size(config.vocab_size, n_train_bytes)
        tokenizer = train_bpe(training_texts(sample.items, rule, config), vocab_size)
    n_bytes, lengths = sample.n_bytes, sample.lengths
    return Plan(folder=folder, tokenizer=tokenizer, rule=rule, n_bytes=n_bytes, lengths=lengths)
