"""First pass over a task: how many documents, and what a vocabulary is learned from.

Whether documents are split by hash or by tail is known only when every task has been read, so it
keeps what either answer needs.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from common.files import atomic_write
from prepare.config import PrepareConfig
from prepare.readers.chunks import END, MORE
from prepare.readers.documents import read_source
from prepare.sources.discover import Progress
from prepare.stats import Stats
from prepare.tokens.split import character_at, fraction_of, split_of, tail_cut
from prepare.tokens.vocabulary import Sample, Sampled
from prepare.workers.tasks import Task

# A vocabulary learned from more text is hardly another one, and this fits any machine.
SAMPLE_BYTES = 32 << 20


@dataclass(kw_only=True)
class Scan:
    """What was found in one task, or in several."""

    sample: Sample = field(default_factory=lambda: Sample(SAMPLE_BYTES))
    number: int = -1  # of the task
    n_documents: int = 0
    n_bytes: int = 0
    characters: set[str] = field(default_factory=set)
    # (task, document) -> bytes, of documents in several pieces
    lengths: dict[tuple[int, int], int] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)

    def add(self, other: "Scan") -> None:
        """Take in what was found in another task, in any order."""
        self.n_documents += other.n_documents
        self.n_bytes += other.n_bytes
        self.characters |= other.characters
        self.lengths |= other.lengths
        self.stats.add(other.stats)
        self.sample.merge(other.sample)

    def save(self, path: Path) -> None:
        """Write it as a line of JSON and the texts of the sample, for a run that goes on later."""
        pieces = self.sample.pieces()
        header = {
            "number": self.number,
            "n_documents": self.n_documents,
            "n_bytes": self.n_bytes,
            "characters": "".join(sorted(self.characters)),
            "lengths": [[*place, n_bytes] for place, n_bytes in self.lengths.items()],
            "findings": self.stats.as_json(),
            "barred_from": self.sample.barred_from,
            "pieces": [piece._replace(text=len(piece.text)) for piece in pieces],  # type: ignore[arg-type]
        }
        with atomic_write(path) as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.writelines(piece.text for piece in pieces)

    @classmethod
    def load(cls, path: Path) -> "Scan":
        """Read back what ``save`` wrote."""
        with path.open("rb") as file:
            header = json.loads(file.readline())
            sample = Sample(SAMPLE_BYTES)
            for fraction, n_bytes, *rest in header["pieces"]:
                sample.add(Sampled(fraction, file.read(n_bytes), *rest))
        sample.barred_from = header["barred_from"]
        return cls(
            sample=sample,
            number=header["number"],
            n_documents=header["n_documents"],
            n_bytes=header["n_bytes"],
            characters=set(header["characters"]),
            lengths={(task, number): n_bytes for task, number, n_bytes in header["lengths"]},
            stats=Stats.from_json(header["findings"]),
        )


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """What is done with every task, here or in another process."""

    config: PrepareConfig
    folder: Path
    key: str  # of the sources and options
    limit: int | None = None  # stop after so many documents

    def __call__(self, task: Task, progress: Progress) -> Path:
        """Return the file of what is in the task's documents: an earlier run's, where one is there.

        Raises: UserError for sources that cannot be used.
        """
        path = self.folder / f"{self.key}-{task.number:06}.scan"
        if path.exists():
            progress(task.size_bytes)
        else:
            self.read(task, progress).save(path)
        return path

    def read(self, task: Task, progress: Progress) -> Scan:
        """Return what is in the task's documents.

        Raises: UserError for sources that cannot be used.
        """
        task.check_unchanged()
        scan = self._read(task, progress)
        task.check_unchanged()
        return scan

    def _read(self, task: Task, progress: Progress) -> Scan:
        config = self.config
        scan = Scan(number=task.number, sample=Sample(SAMPLE_BYTES, task.barred_from))
        # Of the document in progress: its length and split are known only at its end.
        pending = Sample(SAMPLE_BYTES, scan.sample.barred_from)
        digest, n_bytes, n_pieces = xxhash.xxh3_128(), 0, 0
        for source in task.sources:
            for text, chunk_end in read_source(source, config, scan.stats, progress):
                if config.tokenizer == "char":
                    # of documents dropped later too: they will be encoded before that shows
                    scan.characters.update(text.decode("utf-8"))
                elif config.tokenizer == "bpe":
                    # by another seed than the split's: the sample is to be of both sides
                    fraction = fraction_of(xxhash.xxh3_128_digest(text), config.seed + 1)
                    pending.add(Sampled(fraction, text, n_bytes, 0, False, source.val))
                    digest.update(text)
                n_bytes += len(text)
                n_pieces += 1
                if chunk_end is END:
                    if n_pieces > 1:
                        scan.lengths[task.number, scan.n_documents] = n_bytes
                    scan.n_documents += 1
                    scan.n_bytes += n_bytes
                    in_val = split_of(digest.digest(), config) == "val"
                    for piece in pending.pieces():
                        scan.sample.add(piece._replace(n_document_bytes=n_bytes, in_val=in_val))
                if chunk_end is not MORE:
                    pending = Sample(SAMPLE_BYTES, scan.sample.barred_from)
                    digest, n_bytes, n_pieces = xxhash.xxh3_128(), 0, 0
                if self.limit is not None and scan.n_documents >= self.limit:
                    return scan
        return scan


def training_texts(sample: Sample, rule: str, config: PrepareConfig) -> list[bytes]:
    """Return the share of the sample that falls into the training split, in a fixed order."""
    texts = []
    for piece in sample.pieces():
        if rule == "files":
            kept = b"" if piece.of_val_file else piece.text
        elif rule == "hash":
            kept = b"" if piece.in_val else piece.text
        else:
            cut = max(0, tail_cut(piece.n_document_bytes, config.val_fraction) - piece.start)
            kept = piece.text[: character_at(piece.text, cut)]
        if kept:
            texts.append(kept)
    return texts
