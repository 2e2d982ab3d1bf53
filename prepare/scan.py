"""First pass over the sources: how many documents, and what a vocabulary is learned from.

Whether documents are split by hash or by tail is known only at its end, so it keeps what either
answer needs.
"""

from common.tokenfile import Split
from prepare.config import PrepareConfig
from prepare.documents import Document
from prepare.split import MIN_DOCUMENTS, split_of, tail_start
from prepare.vocabulary import Sample

# A vocabulary learned from more text is hardly another one, and this fits any machine.
SAMPLE_BYTES = 64 << 20


class Scan:
    """Counts the documents and gathers what a vocabulary is learned from."""

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        self.n_documents = 0
        self.n_bytes = 0
        self.characters: set[str] = set()
        self.sample = Sample(SAMPLE_BYTES, config.seed)

    def add(self, document: Document) -> None:
        """Take note of one document."""
        self.n_documents += 1
        self.n_bytes += len(document.text)
        if self.config.tokenizer == "char":
            self.characters.update(document.text.decode("utf-8"))
        elif self.config.tokenizer == "bpe":
            self.sample.add(document.text)

    @property
    def rule(self) -> str:
        """How documents are split: ``hash`` or ``tail``."""
        if self.config.split != "auto":
            return self.config.split
        return "hash" if self.n_documents >= MIN_DOCUMENTS else "tail"

    def training_texts(self) -> list[bytes]:
        """Return the sample's share of the training split."""
        parts = (parts_of(text, self.rule, self.config) for text in self.sample.texts())
        return [part["train"] for part in parts if "train" in part]


def parts_of(text: bytes, rule: str, config: PrepareConfig) -> dict[Split, bytes]:
    """Return the split, or the two splits, that a document belongs to, with its text there."""
    if rule == "hash":
        return {split_of(text, config.val_fraction, config.seed): text}
    cut = tail_start(text, config.val_fraction)
    parts: dict[Split, bytes] = {"train": text[:cut], "val": text[cut:]}
    return {split: part for split, part in parts.items() if part}
