"""Second pass: the documents of a task -> its shard of ids (shard.py)."""

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from common.dataset import SPLITS, token_dtype
from common.files import write_all, write_json
from prepare.chunks import DROP, END, MORE, NAME, ChunkEnd, Stats
from prepare.config import ChatsConfig, PrepareConfig
from prepare.output.names import RunWriter
from prepare.output.shard import HASH, ROW, Shard, checksum_of
from prepare.sources.source import Progress
from prepare.tokens.conversations import ConversationEncoder, Mask
from prepare.tokens.encode import Encode, TokenIds, join_documents, make_encoder
from prepare.tokens.vocab_and_split import Plan, character_at, split_document, split_of, tail_cut
from prepare.workers.executor import ReadSource, Task

BATCH_BYTES = 1 << 20  # of text, encoded and written at a time
TRAIN, VAL = range(len(SPLITS))


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What the second pass does with every task, here or in another process."""

    read: ReadSource
    config: PrepareConfig
    plan: Plan
    shards: tuple[Shard, ...]  # of the tasks, by their number
    fast: bool  # with gigatoken

    @cached_property
    def encoder(self) -> tuple[str, Encode]:
        """The library that encodes and its function, made only when the first text is here."""
        return make_encoder(self.plan.tokenizer, fast=self.fast)

    @cached_property
    def conversations(self) -> ConversationEncoder | None:
        """What makes ids and masks of conversations; None of text."""
        if not isinstance(self.config, ChatsConfig):
            return None
        return ConversationEncoder(self.plan.tokenizer, self.config.context)

    def __call__(self, task: Task, progress: Progress) -> str:
        """Write the shard of a task; return the library that encoded it."""
        stats = Stats()
        with ShardWriter(self, task) as writer:
            for source_index, text, end in task.documents(self.read, stats, progress):
                writer.add(text, end, source_index)
            writer.finish(stats)
        return self.encoder[0]


@dataclass(kw_only=True)
class _LongDocument:
    """What is known before its end of a document that comes in several chunks."""

    starts: list[int]  # the size of both splits' ids where it began
    cut: int  # the byte from which it belongs to val, where its end does
    split: int
    digest: "xxhash.xxh3_128" = field(default_factory=xxhash.xxh3_128)  # of its text
    n_bytes: list[int] = field(default_factory=lambda: [0, 0])  # by split
    n_tokens: list[int] = field(default_factory=lambda: [0, 0])


class ShardWriter(ExitStack):
    """Encodes documents in batches and appends them to their split."""

    def __init__(self, job: EncodeJob, task: Task) -> None:
        super().__init__()
        self._job, self._task = job, task
        self._plan, self._config = job.plan, job.config
        self._shard = job.shards[task.number]
        self._shard.manifest_path.unlink(missing_ok=True)
        self._dtype = token_dtype(job.plan.tokenizer.vocab_size)
        # unbuffered: what is written comes in large blocks, which a buffer makes slower
        self._files = [
            self.enter_context(path.open("w+b", buffering=0)) for path in self._shard.paths
        ]
        self._names = RunWriter(*self._files[-3:-1])
        self._lengths = {i: n for number, i, n in job.plan.lengths if number == task.number}
        self._n_documents = 0
        self._texts: list[bytes] = []  # of the rows in self._rows
        self._rows: list[tuple[Any, ...]] = []  # as ROW, but without n_tokens
        self._batch_bytes = 0
        self._long: _LongDocument | None = None
        self._chats = Counter[str]()  # what became of conversations
        self._n_begun = 0  # conversations since the last row

    def add(self, text: bytes, end: ChunkEnd, source_index: int) -> None:
        """Add a document, or a chunk of one, of the task's source at ``source_index``."""
        if self._long is not None or end is not END:
            self._add_chunk(text, end, source_index)
            return
        digest = xxhash.xxh3_128_digest(text)
        val = self._task.sources.is_val(source_index)
        parts = split_document(text, digest, self._plan.rule, self._config, val=val)
        for i, (split, part) in enumerate(parts):
            self._texts.append(part)
            row = (len(part), HASH.unpack(digest), source_index, SPLITS.index(split), i == 0)
            self._rows.append(row)
        self._n_documents += 1
        self._batch_bytes += len(text)
        if self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Encode and write what was gathered."""
        if not self._texts:
            return
        masks: list[Mask] = []
        if self._job.conversations is None:
            documents = self._job.encoder[1](self._texts)
        else:
            documents, masks = self._encode_conversations(self._job.conversations)
        pairs = zip(documents, self._rows, strict=True)
        rows = np.array([(len(ids) + 1, *row) for ids, row in pairs], ROW)
        for split in (TRAIN, VAL):
            chosen = np.flatnonzero(rows["split"] == split)
            if len(chosen):
                ids = [documents[i] for i in chosen]
                joined = join_documents(ids, self._plan.tokenizer.eot_id, self._dtype)
                write_all(self._files[split], joined.view(np.uint8).data)
            if masks and len(chosen):  # the end-of-text id is not learned
                joined = join_documents([masks[i] for i in chosen], 0, np.dtype(np.uint8))
                write_all(self._files[len(SPLITS) + split], joined.data)
        write_all(self._files[-1], rows.view(np.uint8).data)
        self._texts, self._rows, self._batch_bytes = [], [], 0

    def _encode_conversations(
        self, encoder: ConversationEncoder
    ) -> tuple[list[TokenIds], list[Mask]]:
        """Return ids and masks of the parts of what was gathered, and make a row for each part."""
        parts_of = encoder(self._texts, self._job.encoder[1], self._chats)
        found, rows = [], []
        for parts, (_, hashed, *others, _) in zip(parts_of, self._rows, strict=True):
            self._n_begun += 1
            for part in parts:
                found.append(part)
                rows.append((part.n_bytes, hashed, *others, self._n_begun))
                # those after it are equal only to the same part of an equal conversation
                hashed = HASH.unpack(xxhash.xxh3_128_digest(HASH.pack(*hashed)))
                self._n_begun = 0
        self._rows = rows
        return [part.ids for part in found], [part.mask for part in found]

    def _add_chunk(self, text: bytes, end: ChunkEnd, source_index: int) -> None:
        """Encode and write a chunk of a long document, in train until its end says otherwise."""
        if end is NAME:
            self._names.begin_file(text, self._n_documents)
            return
        if end is DROP:
            self._names.skip_record(self._n_documents)
            if self._long is None:
                return
        long = self._long = self._long or self._begin_long(source_index)
        if end is DROP:
            self._truncate(TRAIN, long.starts[TRAIN])
            self._truncate(VAL, long.starts[VAL])
        else:
            long.digest.update(text)
            start = sum(long.n_bytes)
            cut = character_at(text, max(0, long.cut - start))
            if long.split == TRAIN and start + len(text) >= long.cut and cut < len(text):
                if start + cut > 0:
                    self._append_long(long, text[:cut], ends=True)
                long.split = VAL
                text = text[cut:]
            self._append_long(long, text, ends=end is END)
        if end is END:
            self._end_long(long, source_index)
        if end is not MORE:
            self._long = None

    def _begin_long(self, source_index: int) -> _LongDocument:
        self._flush()
        cut = sys.maxsize
        if self._plan.rule == "tail":
            cut = tail_cut(self._lengths.get(self._n_documents, 0), self._config.val_fraction)
        in_val = self._plan.rule == "files" and self._task.sources.is_val(source_index)
        starts = [file.tell() for file in self._files]
        return _LongDocument(starts=starts, cut=cut, split=VAL if in_val else TRAIN)

    def _append_long(self, long: _LongDocument, text: bytes, *, ends: bool) -> None:
        (ids,) = self._job.encoder[1]([text])
        if ends:
            ids = join_documents([ids], self._plan.tokenizer.eot_id, self._dtype)
        raw = ids.astype(self._dtype, copy=False).view(np.uint8).data
        write_all(self._files[long.split], raw)
        long.n_tokens[long.split] += len(ids)
        long.n_bytes[long.split] += len(text)

    def _end_long(self, long: _LongDocument, source_index: int) -> None:
        """Move the document to val if its content says so, and note its rows."""
        digest = long.digest.digest()
        if self._plan.rule == "hash" and split_of(digest, self._config) == "val":
            train, start = self._files[TRAIN], long.starts[TRAIN]
            train.seek(start)
            while raw := train.read(BATCH_BYTES):
                write_all(self._files[VAL], raw)
            self._truncate(TRAIN, start)
            long.n_bytes.reverse()
            long.n_tokens.reverse()
        for split, n_tokens in enumerate(long.n_tokens):
            if n_tokens:
                is_first = split == TRAIN or not long.n_tokens[TRAIN]
                row = (n_tokens, long.n_bytes[split], HASH.unpack(digest), source_index, split)
                write_all(self._files[-1], np.array([(*row, is_first)], ROW).view(np.uint8).data)
        self._n_documents += 1

    def _truncate(self, split: int, size: int) -> None:
        self._files[split].truncate(size)
        self._files[split].seek(size)

    def finish(self, stats: Stats) -> None:
        """Write what is left, and the manifest."""
        self._flush()
        stats.chats += self._chats
        self._names.finish(self._n_documents)
        manifest = {
            "sizes": [file.tell() for file in self._files],
            "checksums": [checksum_of(path) for path in self._shard.paths],
            "stats": stats.as_json(),
        }
        write_json(self._shard.manifest_path, manifest)
