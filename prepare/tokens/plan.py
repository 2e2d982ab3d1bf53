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
from prepare.tokens.sample import CorpusSample, training_texts
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
    lengths: dict[tuple[int, int], int]  # (task, document) -> bytes, of those in several chunks

    def __getstate__(self) -> dict[str, Any]:
        vocabulary = describe_tokenizer(self.tokenizer)
        return vars(self) | {"folder": self.folder.absolute(), "tokenizer": vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = load_tokenizer(state["folder"], state["tokenizer"])
        vars(self).update(state | {"tokenizer": tokenizer})

    def save(self, key: str) -> None:
        """Write it into ``folder``, under the ``key`` of the sources and options."""
        save_tokenizer(self.tokenizer, self.folder)
        lengths = [[*document, n_bytes] for document, n_bytes in self.lengths.items()]
        saved = {"key": key, "rule": self.rule, "n_bytes": self.n_bytes, "lengths": lengths}
        vocabulary = describe_tokenizer(self.tokenizer)
        write_json(self.folder / FILE_NAME, saved | {"tokenizer": vocabulary})

    @classmethod
    def load(cls, folder: Path, key: str) -> "Plan | None":
        """Read back what a run of the same sources and options saved before it was stopped."""
        try:
            saved = json.loads((folder / FILE_NAME).read_bytes())
        except (OSError, ValueError):
            return None
        if saved["key"] != key:
            return None
        return cls(
            folder=folder,
            tokenizer=load_tokenizer(folder, saved["tokenizer"]),
            rule=saved["rule"],
            n_bytes=saved["n_bytes"],
            lengths={(task, number): n_bytes for task, number, n_bytes in saved["lengths"]},
        )


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
