"""Second pass: the documents of a task -> ids, kept in parts that are whole or not there.

    KEY-train.bin, KEY-val.bin    ids in the order of the documents, those of all parts in a row
    KEY-0000.npy                  a row for each document (two where its end goes to val): see ROW
    KEY-0000.json                 the manifest, written last: without it there is no part

A task killed and started again reads its sources from their beginning, as archives must be, but
encodes only what comes after its last whole part.
"""

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from common.dataset import SPLITS, Split, token_dtype
from common.files import write_all, write_json
from common.tokenizer import Tokenizer, describe_tokenizer, load_tokenizer
from prepare.config import PrepareConfig
from prepare.forked import can_fork
from prepare.readers.chunks import DROP, END, MORE, ChunkEnd
from prepare.readers.documents import read_source
from prepare.sources.discover import Progress
from prepare.stats import Stats
from prepare.tokens.encode import JUDGE_FIRST, Encode, Judged, PieceIds, make_encoder
from prepare.tokens.split import character_at, split_document, split_of, tail_cut
from prepare.workers.tasks import Task

BATCH_BYTES = 1 << 20  # encoded and written at a time
PART_BYTES = 64 << 20  # of text: what a kill can cost, beside reading up to there again
JUDGE_APART_BYTES = 8 << 20  # of sources: to begin, the process takes some hundredths of a second
PART_ROWS = 500_000  # bounds the memory where documents are a few bytes long

ROW = np.dtype(
    [
        ("n_tokens", "<i8"),  # the end-of-text id included
        ("n_bytes", "<i8"),
        ("hash", "<u8", 2),  # of the whole document: equal for equal ones
        ("source", "<i4"),  # its place among the task's sources
        ("split", "u1"),  # its place in SPLITS
        ("first", "u1"),  # 0 for the second half of a document
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part on disk."""

    path: Path  # of the manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the part was when it was finished: see _TaskWriter.finish."""
        return dict(json.loads(self.path.read_bytes()))

    @property
    def rows(self) -> "np.ndarray[Any, Any]":
        """The documents, as ROW describes them."""
        return np.load(self.path.with_suffix(".npy"))  # type: ignore[no-any-return]


def ids_path(folder: Path, key: str, split: Split) -> Path:
    """Return the file of a task's ids in one split."""
    return folder / f"{key}-{split}.bin"


def _part(folder: Path, key: str, number: int) -> Part:
    return Part(path=folder / f"{key}-{number:04}.json")


def parts_of_task(folder: Path, key: str) -> list[Part]:
    """Return the parts of a task, in order, up to the first that is missing."""
    found: list[Part] = []
    while (part := _part(folder, key, len(found))).path.exists():
        found.append(part)
    return found


def parts_done(folder: Path, key: str) -> list[Part]:
    """Return the parts of a task up to the first that is missing or damaged, reading them all.

    Parts are not flushed to disk one by one: a power cut can leave holes in them.
    """
    found = parts_of_task(folder, key)
    if not found:
        return []
    whole: list[Part] = []
    digests = [xxhash.xxh3_128() for _ in SPLITS]
    try:
        files = [ids_path(folder, key, split).open("rb") for split in SPLITS]
    except OSError:
        return []
    with files[0], files[1]:
        for part in found:
            try:
                for file, digest, size in zip(files, digests, part.manifest["sizes"], strict=True):
                    _hash_on(file, digest, size)
                rows = xxhash.xxh3_128_hexdigest(part.path.with_suffix(".npy").read_bytes())
                expected = part.manifest["checksums"]
            except (OSError, ValueError, KeyError):
                break
            if [*(digest.hexdigest() for digest in digests), rows] != expected:
                break
            whole.append(part)
    return whole


def _hash_on(file: BinaryIO, digest: "xxhash.xxh3_128", end: int) -> None:
    """Add to ``digest`` what follows in ``file`` up to the byte ``end``."""
    while (n_left := end - file.tell()) > 0 and (block := file.read(min(n_left, 1 << 20))):
        digest.update(block)


def is_complete(parts: list[Part]) -> bool:
    """Say whether these are all parts of their task."""
    return bool(parts) and bool(parts[-1].manifest["last"])


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What is done with every task, here or in another process.

    Another one reads the vocabulary from ``folder``: through a pipe, which does not hold it, each
    worker would begin only when the one before it is there to take it.
    """

    folder: Path
    config: PrepareConfig
    tokenizer: Tokenizer
    rule: str
    fast: bool
    keys: tuple[str, ...]  # of the tasks, by their number
    # (task, document) -> bytes, of those in several pieces, where their end goes to val
    lengths: dict[tuple[int, int], int]

    def __getstate__(self) -> dict[str, Any]:
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        vocabulary = describe_tokenizer(self.tokenizer)
        return kept | {"folder": self.folder.absolute(), "tokenizer": vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = load_tokenizer(state["folder"], state["tokenizer"])
        vars(self).update(state | {"tokenizer": tokenizer})

    @cached_property
    def encoder(self) -> tuple[str, Encode]:
        """The name of the library that encodes, and the function that does it."""
        return make_encoder(self.tokenizer, fast=self.fast)

    def __call__(self, task: Task, progress: Progress) -> str:
        """Write the parts of a task that are not there yet; return the library that encoded.

        Raises: UserError for sources that cannot be used; EncodersDisagreeError.
        """
        done = parts_done(self.folder, self.keys[task.number])
        n_done = int(done[-1].manifest["n_documents"]) if done else 0
        if is_complete(done):
            return self.encoder[0]
        task.check_unchanged()
        stats, n_documents = Stats(), 0
        with _TaskWriter(self, task, done) as writer:
            for place, source in enumerate(task.sources):
                for text, chunk_end in read_source(source, self.config, stats, progress):
                    if n_documents >= n_done:
                        writer.add(text, chunk_end, place, n_documents)
                    if chunk_end is END:
                        n_documents += 1
                        if writer.is_full:
                            writer.finish(n_documents, None)
            task.check_unchanged()
            writer.finish(n_documents, stats)
        return self.encoder[0]


class _TaskWriter(ExitStack):
    """Encodes documents in batches, appends them to their split, and closes parts now and then."""

    def __init__(self, job: EncodeJob, task: Task, done: list[Part]) -> None:
        super().__init__()
        self._job, self._task = job, task
        self._key = job.keys[task.number]
        self._number = len(done)
        self._dtype = token_dtype(job.tokenizer.vocab_size)
        self._eot = np.array([job.tokenizer.eot_id], self._dtype)
        sizes = done[-1].manifest["sizes"] if done else [0] * len(SPLITS)
        self._files, self._digests = [], []
        for split, size in zip(SPLITS, sizes, strict=True):
            path = ids_path(job.folder, self._key, split)
            path.touch()
            # unbuffered: what is written comes in large blocks, which a buffer makes slower
            file, digest = self.enter_context(path.open("r+b", buffering=0)), xxhash.xxh3_128()
            _hash_on(file, digest, size)
            file.truncate(size)  # what came after the last whole part
            self._files.append(file)
            self._digests.append(digest)
        self._long: _Long | None = None  # the document in progress, where it has several pieces
        self._begin()

    def _begin(self) -> None:
        self._texts: list[bytes] = []  # of the rows in self._rows
        self._rows: list[tuple[int, bytes, int, int, bool]] = []  # ROW but n_tokens
        self._blocks: list[np.ndarray[Any, Any]] = []  # rows that are encoded
        self._batch_bytes = self._n_bytes = self._n_rows = 0

    @cached_property
    def _encode(self) -> Encode:
        """The encoder, made only when the first text is here: meanwhile more of it is read."""
        _, encode = self._job.encoder
        if isinstance(encode, Judged):
            # Each earlier task has one document at least, so the run's first are among these.
            encode.n_left = JUDGE_FIRST - self._task.number
            if can_fork() and self._task.size_bytes >= JUDGE_APART_BYTES:
                self.enter_context(encode.apart())
        return encode

    @property
    def is_full(self) -> bool:
        """Say whether the part is large enough to be closed."""
        return self._n_bytes >= PART_BYTES or self._n_rows >= PART_ROWS

    def add(self, text: bytes, chunk_end: ChunkEnd, place: int, number: int) -> None:
        """Take in a document of the task's source at ``place``, or a piece of it."""
        job, val = self._job, self._task.sources[place].val
        self._n_bytes += len(text)
        if self._long is None and chunk_end is END:
            digest = xxhash.xxh3_128_digest(text)
            halves = split_document(text, digest, job.rule, job.config, val=val)
            for i, (split, part) in enumerate(halves):
                self._texts.append(part)
                self._rows.append((len(part), digest, place, SPLITS.index(split), i == 0))
            self._n_rows += len(halves)
            self._batch_bytes += len(text)
            if self._batch_bytes >= BATCH_BYTES:
                self._flush()
            return
        if self._long is None:
            self._flush()
            n_bytes = job.lengths.get((self._task.number, number), 0)
            self._long = self.enter_context(_Long(job, n_bytes))
        if chunk_end is not DROP:
            for part, ends in self._long.take(text, last=chunk_end is END):
                ids = self._encode([part])
                self._long.write(self._packed([*ids, self._eot] if ends else ids), ends=ends)
        if chunk_end is END:
            self._end_long(place, val=val)
        if chunk_end is not MORE:
            self._long.close()
            self._long = None

    def _packed(self, rows: list[PieceIds]) -> memoryview:
        """Return ids as they lie in the file."""
        return np.concatenate(rows, dtype=self._dtype, casting="same_kind").view(np.uint8).data

    def _append(self, number: int, raw: bytes | memoryview) -> None:
        write_all(self._files[number], raw)
        self._digests[number].update(raw)

    def _flush(self) -> None:
        """Encode and write what was gathered."""
        if not self._texts:
            return
        rows = self._encode(self._texts)
        for number in range(len(SPLITS)):
            out = [
                ids_or_eot
                for ids, row in zip(rows, self._rows, strict=True)
                if row[3] == number
                for ids_or_eot in (ids, self._eot)
            ]
            if out:
                self._append(number, self._packed(out))
        self._blocks.append(_packed_rows([len(ids) + 1 for ids in rows], self._rows))
        self._texts, self._rows, self._batch_bytes = [], [], 0

    def _end_long(self, place: int, *, val: bool) -> None:
        """Give the document in progress to its split, or its halves to theirs."""
        assert self._long is not None
        digest, halves = self._long.finish(val=val)
        rows = []
        for i, ((split, n_bytes), n_ids) in enumerate(zip(halves, self._long.n_ids, strict=True)):
            rows.append((n_bytes, digest, place, SPLITS.index(split), i == 0))
            for raw in self._long.read(n_ids * self._dtype.itemsize):
                self._append(SPLITS.index(split), raw)
        self._blocks.append(_packed_rows(self._long.n_ids, rows))
        self._n_rows += len(rows)

    def finish(self, n_documents: int, stats: Stats | None) -> None:
        """Close the part; ``stats`` make it the last of its task.

        ``n_documents`` is how many of the task's were read so far.
        """
        self._flush()
        if isinstance(self._encode, Judged):
            self._encode.settle()
        part = _part(self._job.folder, self._key, self._number)
        # through memory: numpy makes a TypeError of a Ctrl-C that meets it at writing to a file
        packed = io.BytesIO()
        np.save(packed, np.concatenate([np.zeros(0, ROW), *self._blocks]))
        part.path.with_suffix(".npy").write_bytes(packed.getbuffer())
        rows = xxhash.xxh3_128_hexdigest(packed.getbuffer())
        manifest = {
            "n_documents": n_documents,
            "last": stats is not None,
            "sizes": [file.tell() for file in self._files],
            "checksums": [*(digest.hexdigest() for digest in self._digests), rows],
        }
        if stats is not None:
            manifest["findings"] = stats.as_json()
        write_json(part.path, manifest)
        self._number += 1
        self._begin()


def _packed_rows(n_tokens: list[int], rows: list[Any]) -> "np.ndarray[Any, Any]":
    block = np.zeros(len(rows), ROW)
    n_bytes, digests, places, splits, first = zip(*rows, strict=True)
    hashes = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    columns = [n_tokens, n_bytes, hashes, places, splits, first]
    for name, column in zip(ROW.names, columns, strict=True):  # type: ignore[arg-type]
        block[name] = column
    return block


class _Long(ExitStack):
    """A document that comes in several pieces: its ids on disk until its end says where they go."""

    def __init__(self, job: EncodeJob, n_bytes: int) -> None:
        super().__init__()
        self.n_ids = [0]  # of its row, or of its two, end-of-text ids included
        self._job = job
        self._itemsize = token_dtype(job.tokenizer.vocab_size).itemsize
        self._spool = tempfile.TemporaryFile(dir=job.folder)  # noqa: SIM115  the stack closes it
        self.enter_context(self._spool)
        self._hash = xxhash.xxh3_128()
        self._n_bytes = 0
        self._cut = tail_cut(n_bytes, job.config.val_fraction) if job.rule == "tail" else None
        self._cut_at: int | None = None  # the character at it

    def take(self, text: bytes, *, last: bool) -> Iterator[tuple[bytes, bool]]:
        """Yield the pieces of ``text`` to encode apart, and whether each ends its row."""
        self._hash.update(text)
        start = self._n_bytes
        self._n_bytes += len(text)
        if self._cut is not None and self._cut_at is None and self._n_bytes >= self._cut:
            cut = character_at(text, max(0, self._cut - start))
            if cut < len(text):  # else the next piece begins with it
                self._cut_at = start + cut
                if self._cut_at > 0:
                    yield text[:cut], True
                text = text[cut:]
        yield text, last

    def write(self, raw: memoryview, *, ends: bool) -> None:
        """Put the ids of a piece aside."""
        self._spool.write(raw)
        self.n_ids[-1] += len(raw) // self._itemsize
        if ends:
            self.n_ids.append(0)

    def finish(self, *, val: bool) -> tuple[bytes, list[tuple[Split, int]]]:
        """Return the document's hash, and the split and bytes of its row, or of its two."""
        self._spool.seek(0)
        self.n_ids.pop()
        digest = self._hash.digest()
        if self._job.rule == "tail":
            cut = self._n_bytes if self._cut_at is None else self._cut_at
            halves: list[tuple[Split, int]] = [("train", cut), ("val", self._n_bytes - cut)]
            return digest, [half for half in halves if half[1]]
        split: Split = "val" if val else "train"
        if self._job.rule == "hash":
            split = split_of(digest, self._job.config)
        return digest, [(split, self._n_bytes)]

    def read(self, n_bytes: int) -> Iterator[bytes]:
        """Yield the next ``n_bytes`` that were put aside."""
        while n_bytes:
            yield (raw := self._spool.read(min(n_bytes, BATCH_BYTES)))
            n_bytes -= len(raw)
