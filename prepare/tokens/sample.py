"""First pass over the sources: how many documents, and a sample that a vocabulary is learned from.

Whether documents are split by hash or by tail is known only when every task has been read, so it
keeps what either answer needs.
"""

import json
import math
from contextlib import closing
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import xxhash

from common.files import atomic_write
from common.tokenizer import CharTokenizer, Tokenizer
from prepare.chunks import END, MORE, NAME, Stats
from prepare.config import PrepareConfig
from prepare.sources.source import Progress
from prepare.tokens.vocab_and_split import (
    MIN_DOCUMENTS,
    Lengths,
    Plan,
    auto_vocab_size,
    character_at,
    split_of,
    tail_cut,
    train_bpe,
    unit_hash,
)
from prepare.workers.executor import ReadSource, Task

# A vocabulary learned from more text is hardly another one, and this fits any machine.
SAMPLE_BYTES = 32 << 20
MIN_ALWAYS_SPLIT = 20  # conversations
SUFFIX = ".sample"  # of a task's file


class SampleItem(NamedTuple):
    """A chunk of a document that a vocabulary may be learned from."""

    unit_hash: float  # of the text: from 0 to 1
    text: bytes
    start: int  # where it begins in its document
    n_document_bytes: int
    in_val: bool  # where documents are split by their hash
    of_val_file: bool


class BottomKSample:
    """At most ``max_bytes`` of items, chosen by hash: the same in any order.

    Kept are the items with the smallest hashes that fit. The first that does not fit sets the
    threshold: none of its hash or a larger one is kept, though it would fit; else order would
    count.
    """

    def __init__(self, max_bytes: int, threshold: float = 1.0) -> None:
        self.max_bytes = max_bytes
        self.threshold = threshold  # every hash is below 1
        # the largest hash first; of chunks that are equal the later first
        self._heap: list[tuple[float, int, SampleItem]] = []
        self._size_bytes = 0

    def add(self, item: SampleItem) -> None:
        """Offer one item."""
        if item.unit_hash < self.threshold:
            heappush(self._heap, (-item.unit_hash, -item.start, item))
            self._size_bytes += len(item.text)
            self._evict()

    def merge(self, other: "BottomKSample") -> None:
        """Add another sample, as if all its items had been offered here."""
        self.threshold = min(self.threshold, other.threshold)
        self._evict()
        for item in other.items():
            self.add(item)

    def _evict(self) -> None:
        while len(self._heap) > 1 and (
            self._size_bytes > self.max_bytes or -self._heap[0][0] >= self.threshold
        ):
            *_, item = heappop(self._heap)
            self._size_bytes -= len(item.text)
            self.threshold = min(self.threshold, item.unit_hash)

    def items(self) -> list[SampleItem]:
        """Return the items kept, of all offered one at least, in the order of their hashes."""
        return sorted(item for *_, item in self._heap)


@dataclass(kw_only=True)
class CorpusSample:
    """What the first pass keeps of one task, or of several."""

    items: BottomKSample = field(default_factory=lambda: BottomKSample(SAMPLE_BYTES))
    n_documents: int = 0
    n_bytes: int = 0
    characters: set[str] = field(default_factory=set)
    lengths: Lengths = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def add(self, other: "CorpusSample") -> None:
        """Add the sample of another task, in any order."""
        self.n_documents += other.n_documents
        self.n_bytes += other.n_bytes
        self.characters |= other.characters
        self.lengths += other.lengths
        self.stats.add(other.stats)
        self.items.merge(other.items)

    def save(self, path: Path) -> None:
        """Write it as a line of JSON and the texts of its items, for a run that resumes."""
        items = self.items.items()
        sizes = [item._replace(text=len(item.text)) for item in items]  # type: ignore[arg-type]
        header = {
            "items": [self.items.threshold, sizes],
            "characters": sorted(self.characters),
            "stats": self.stats.as_json(),
        }
        with atomic_write(path) as file:
            file.write(json.dumps(vars(self) | header).encode() + b"\n")
            file.writelines(item.text for item in items)

    @classmethod
    def load(cls, path: Path) -> "CorpusSample":
        """Read back what ``save`` wrote."""
        sample = BottomKSample(SAMPLE_BYTES)
        with path.open("rb") as file:
            saved = json.loads(file.readline())
            threshold, sizes = saved.pop("items")
            for hashed, n_bytes, *rest in sizes:
                sample.add(SampleItem(hashed, file.read(n_bytes), *rest))
        sample.threshold = threshold
        characters, stats = set(saved.pop("characters")), Stats.from_json(saved.pop("stats"))
        return cls(items=sample, characters=characters, stats=stats, **saved)


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """What the first pass does with every task, here or in another process."""

    read: ReadSource
    config: PrepareConfig
    folder: Path
    key: str  # of the sources and options
    limit: int | None = None  # stop after so many documents

    def __call__(self, task: Task, progress: Progress) -> Path:
        """Return the file of the task's sample: an earlier run's, where one is there."""
        path = self.folder / f"{self.key}-{task.number:06}{SUFFIX}"
        if path.exists():
            progress(task.size_bytes)
        else:
            self.sample(task, progress).save(path)
        return path

    def sample(self, task: Task, progress: Progress) -> CorpusSample:
        """Return what the task's documents hold."""
        config = self.config
        found = CorpusSample(items=BottomKSample(SAMPLE_BYTES, task.threshold))
        # Of the document in progress: its length and split are known only at its end.
        pending = BottomKSample(SAMPLE_BYTES, task.threshold)
        digest, n_bytes, n_chunks = xxhash.xxh3_128(), 0, 0
        for source_index, text, end in task.documents(self.read, found.stats, progress):
            if end is NAME:
                continue
            if config.tokenizer == "char":
                # of documents dropped later too: they will be encoded before that shows
                found.characters.update(text.decode("utf-8"))
            elif config.tokenizer == "bpe":
                # by another seed than the split's: the sample is to be of both sides
                hashed = unit_hash(xxhash.xxh3_128_digest(text), config.seed + 1)
                in_val_file = task.sources.is_val(source_index)
                pending.add(SampleItem(hashed, text, n_bytes, 0, False, in_val_file))
                digest.update(text)
            n_bytes += len(text)
            n_chunks += 1
            if end is END:
                if n_chunks > 1:
                    found.lengths.append([task.number, found.n_documents, n_bytes])
                found.n_documents += 1
                found.n_bytes += n_bytes
                in_val = split_of(digest.digest(), config) == "val"
                for item in pending.items():
                    found.items.add(item._replace(n_document_bytes=n_bytes, in_val=in_val))
            if end is not MORE:
                pending = BottomKSample(SAMPLE_BYTES, found.items.threshold)
                digest, n_bytes, n_chunks = xxhash.xxh3_128(), 0, 0
            if found.n_documents == self.limit:
                break
        return found


def training_texts(sample: BottomKSample, rule: str, config: PrepareConfig) -> list[bytes]:
    """Return the share of the sample that falls into the training split, in a fixed order."""
    texts = []
    for item in sample.items():
        kept = item.text
        if rule == "tail":
            cut = max(0, tail_cut(item.n_document_bytes, config.val_fraction) - item.start)
            kept = item.text[: character_at(item.text, cut)]
        elif item.of_val_file if rule == "files" else item.in_val:
            kept = b""
        if kept:
            texts.append(kept)
    return texts


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
        is_auto = config.vocab_size == "auto"
        vocab_size = auto_vocab_size(n_train_bytes) if is_auto else int(config.vocab_size)
        tokenizer = train_bpe(training_texts(sample.items, rule, config), vocab_size)
    return Plan(folder=folder, tokenizer=tokenizer, rule=rule, lengths=sample.lengths)


def with_some_val(tasks: list[Task], read: ReadSource, config: PrepareConfig) -> PrepareConfig:
    """Return settings by which one at least of few whole documents falls into val.

    Of MIN_ALWAYS_SPLIT up to MIN_DOCUMENTS that is the one of the smallest hash, where none has one
    below --val-fraction.
    """
    hashes = []
    for task in tasks if config.val_fraction else []:
        with closing(task.documents(read, Stats(), lambda n_bytes: None)) as documents:
            for _, text, end in documents:
                if end is END:
                    hashes.append(unit_hash(xxhash.xxh3_128_digest(text), config.seed))
                if len(hashes) >= MIN_DOCUMENTS:
                    return config
    if len(hashes) < MIN_ALWAYS_SPLIT or min(hashes) < config.val_fraction:
        return config
    return replace(config, val_fraction=math.nextafter(min(hashes), 1))
