"""The chain of prepare, in order, with memory that does not grow with the corpus.

    sources -> tasks -> first pass: how many documents, which vocabulary
                     -> second pass: parts of ids, each kept when finished
                     -> merged into data/

The sources are read twice where the vocabulary is learned from them or a document's length decides
its split, and once where neither is so. What is finished stays in data/.unfinished until the end:
the same command, started again after a kill, goes on from there.
"""

import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from common.dataset import SPLITS, commit, token_dtype
from common.errors import DataError
from common.files import write_json
from common.tokenizer import (
    CharTokenizer,
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from prepare.config import PrepareConfig
from prepare.output.merge import Merged, merge
from prepare.output.shard_writer import EncodeJob, is_complete, parts_done
from prepare.readers.encoding import check_encoding
from prepare.sources.discover import Progress, Source
from prepare.sources.fingerprint import (
    OUTPUT_VERSION,
    fingerprint_of,
    old_meta,
    stale_reason,
    versions,
)
from prepare.stats import Stats
from prepare.tokens.encode import EncodersDisagreeError, make_encoder
from prepare.tokens.scan import Scan, ScanJob, training_texts
from prepare.tokens.split import MIN_DOCUMENTS
from prepare.tokens.vocabulary import (
    file_tokenizer,
    learn_bpe,
    parse_vocab_size,
    published_tokenizer,
)
from prepare.workers.executor import Engine
from prepare.workers.tasks import Task, key_of, sources_of, tasks_of

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
LOCK_SECONDS = 2.0  # what helps a killed run holds its lock too, and ends with what it is at
POLL_SECONDS = 0.05
SCAN_NAME = "scan.json"
SLOW_NAME = "encode-with-tiktoken"  # gigatoken failed in this run
# For the estimate of disk space; low, so that nothing is refused that would fit.
EXPANSION = 3  # bytes of text in a byte of a packed file
PACKED_SUFFIXES = (".xz", ".zst", ".gz", ".bz2", ".zip", ".parquet")
BYTES_PER_ID = 5  # of byte pairs; characters have one or more

NewProgress = Callable[[str, int], Progress]  # of a pass: its name, and its bytes on disk


def prepare_corpus(
    sources: list[Source],
    config: PrepareConfig,
    out: Path,
    new_progress: NewProgress,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write a data folder from ``sources``; return its meta.json.

    Raises: UserError for whatever in the sources or settings cannot be used; a data set that was
    there before is then as it was.
    """
    parse_vocab_size(config.vocab_size, 0)  # a typo is better said now than after the first pass
    check_encoding(config)
    if config.vocab_size != "auto" and config.tokenizer != "bpe":
        log.warning(
            "--vocab-size is ignored: only --tokenizer bpe learns a vocabulary of any size."
        )
    tasks = tasks_of(sources)
    made_from = fingerprint_of(tasks, config)
    old = old_meta(out)
    if old is not None:
        reason = stale_reason(old.get("made_from", {}), made_from)
        if reason is None:
            log.info("%s: made of these sources, with these options: nothing to do.", out)
            if (out / UNFINISHED).exists():  # of a run killed when all but this was done
                with _work_folder(out) as work:
                    shutil.rmtree(work)
            return old
        log.info("%s: made again: %s.", out, reason)
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _work_folder(out) as work:
            meta = _Run(tasks, config, out, work, made_from, new_progress, engine or Engine()).go()
            shutil.rmtree(work)
        return meta
    except OSError as error:  # those of reading are DataErrors already
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        if not existed:
            with suppress(OSError):  # not empty
                out.rmdir()


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Hold the folder of unfinished work, alone; it goes when nothing in it is worth keeping."""
    work = out / UNFINISHED
    deadline = time.monotonic() + LOCK_SECONDS
    lock = None
    while lock is None:
        lock = _lock(work)
        if lock is None:
            if time.monotonic() > deadline:
                raise DataError(
                    f"{out}: another prepare is writing there. Wait for it, or choose another "
                    "--out."
                )
            time.sleep(POLL_SECONDS)
    with lock:
        try:
            yield work
        finally:
            if not any(work.glob("*.json")) and not any(work.glob("*.scan")):
                shutil.rmtree(work, ignore_errors=True)


def _lock(work: Path) -> TextIO | None:
    """Return the lock of the folder, held, or None where another run holds it."""
    import fcntl

    try:
        work.mkdir(exist_ok=True)
        lock = (work / "lock").open("w")
    except FileNotFoundError:  # the other one ended just now, and took its folder with it
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_nlink:  # 0: held, but of a folder that is gone
            return lock
    except BlockingIOError:
        pass
    lock.close()
    return None


class _Run:
    """One run over the sources: its settings, and the passes in order."""

    def __init__(
        self,
        tasks: list[Task],
        config: PrepareConfig,
        out: Path,
        work: Path,
        made_from: dict[str, Any],
        new_progress: NewProgress,
        engine: Engine,
    ) -> None:
        self.tasks, self.config, self.out, self.work = tasks, config, out, work
        self.made_from, self.new_progress, self.engine = made_from, new_progress, engine
        self.sources = sources_of(tasks)
        self.learns = config.tokenizer in ("bpe", "char")

    def go(self) -> dict[str, Any]:
        """Run the passes and commit; return meta.json."""
        self._keep_ids_apart()
        self._check_space(None)
        tokenizer, rule, scan = self._vocabulary()
        self._check_space(scan)
        keys, encoder = self._encode(tokenizer, rule, scan)
        merged = merge(
            self.tasks,
            self.work,
            keys,
            self.out,
            tokenizer.vocab_size,
            dedup=self.config.dedup == "exact",
        )
        try:
            self._refuse_empty(merged.n_documents, merged.stats)
            return commit(
                self.out, merged.files, tokenizer, self._meta(merged, rule, encoder, tokenizer)
            )
        except BaseException:
            for name in merged.files:
                (self.out / f"{name}.tmp").unlink(missing_ok=True)
            raise

    @property
    def _is_read_first(self) -> bool:
        """Whether a pass over all sources comes before that which encodes."""
        return self.learns or self.config.split_rule == "tail"

    def _keep_ids_apart(self) -> None:
        """Part files that a run killed at its end gave a second name in ``out`` from that one.

        Writing to one of the two would change the other: a finished part, or the data set there.
        """
        for split in SPLITS:
            (self.out / f"{split}.bin.tmp").unlink(missing_ok=True)
        for path in self.work.glob("*.bin"):
            if path.stat().st_nlink > 1:
                copy = path.with_suffix(".copy")
                shutil.copyfile(path, copy)
                copy.replace(path)

    def _check_space(self, scan: Scan | None) -> None:
        """Refuse to begin what the disk has no room for: parts, then the files made of them."""
        if scan is not None and self.learns:
            n_text = scan.n_bytes
        else:
            n_text = sum(
                s.size_bytes * (EXPANSION if s.path.suffix in PACKED_SUFFIXES else 1)
                for s in self.sources
            )
        per_id = 1 if self.config.tokenizer == "char" else BYTES_PER_ID
        there = sum(file.stat().st_size for file in self.work.glob("*.bin"))
        n_copies = 2 - 1 / max(1, len(self.tasks))  # the ids of the first task are not copied
        needed = int(2 * n_copies * n_text / per_id) - there
        free = shutil.disk_usage(self.out).free
        if needed > free:
            raise DataError(
                f"{self.out}: about {needed / 1e9:,.1f} GB are needed there, but {free / 1e9:,.1f} "
                "GB are free. Free some, or choose another --out."
            )

    def _vocabulary(self) -> tuple[Tokenizer, str, Scan]:
        """First pass: return the tokenizer, how documents are split, and what was counted."""
        path = self.work / SCAN_NAME
        found = self._scan_found(path)
        if found is not None:
            return found
        tokenizer = None if self.learns else self._published()
        scan = self._scan()
        rule: str = self.config.split_rule
        if any(source.val for source in self.sources):
            rule = "files"
        elif rule == "auto":
            rule = "hash" if scan.n_documents >= MIN_DOCUMENTS else "tail"
        tokenizer = tokenizer or self._learned(scan, rule)
        save_tokenizer(tokenizer, self.work)
        write_json(
            path,
            {
                "key": key_of(self.made_from),
                "rule": rule,
                "n_documents": scan.n_documents,
                "n_bytes": scan.n_bytes,
                "lengths": [[*place, n_bytes] for place, n_bytes in scan.lengths.items()],
                "tokenizer": describe_tokenizer(tokenizer),
            },
        )
        for file in self.work.glob("*.scan"):
            file.unlink()
        return tokenizer, rule, scan

    def _scan_found(self, path: Path) -> tuple[Tokenizer, str, Scan] | None:
        """Return what an earlier run, of the same sources and options, found before it ended."""
        try:
            saved = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        if saved["key"] != key_of(self.made_from):
            return None
        scan = Scan()
        scan.n_documents, scan.n_bytes = saved["n_documents"], saved["n_bytes"]
        scan.lengths = {(task, number): n_bytes for task, number, n_bytes in saved["lengths"]}
        log.info("Going on where an earlier run was stopped.")
        return load_tokenizer(self.work, saved["tokenizer"]), saved["rule"], scan

    def _scan(self) -> Scan:
        config = self.config
        whole = self._is_read_first
        total = Scan()
        if not whole and (config.split_rule != "auto" or any(s.val for s in self.sources)):
            return total
        job = ScanJob(
            config=config,
            folder=self.work,
            key=key_of(self.made_from),
            limit=None if whole else MIN_DOCUMENTS,
        )
        size_bytes = sum(task.size_bytes for task in self.tasks)
        progress = self.new_progress("scan", size_bytes)
        # Lazily: what is barred is known only when earlier tasks are done.
        tasks = (replace(task, barred_from=total.sample.barred_from) for task in self.tasks)
        if whole:
            # Closed at once when we are stopped: workers would read on.
            with closing(
                self.engine.run(job, tasks, len(self.tasks), size_bytes, progress)
            ) as paths:
                for path in paths:
                    total.add(Scan.load(path))
        else:
            for task in tasks:
                total.add(job.read(task, progress))
                if total.n_documents >= MIN_DOCUMENTS:
                    break
        self._refuse_empty(total.n_documents, total.stats)
        return total

    def _published(self) -> Tokenizer:
        path = Path(self.config.tokenizer)
        return (
            file_tokenizer(path) if path.is_file() else published_tokenizer(self.config.tokenizer)
        )

    def _learned(self, scan: Scan, rule: str) -> Tokenizer:
        config = self.config
        if config.tokenizer == "char":
            return CharTokenizer(tuple(sorted(scan.characters)))
        val_fraction = 0 if rule == "files" else config.val_fraction
        n_train_bytes = int(scan.n_bytes * (1 - val_fraction))
        vocab_size = parse_vocab_size(config.vocab_size, n_train_bytes)
        return learn_bpe(training_texts(scan.sample, rule, config), vocab_size)

    def _encode(self, tokenizer: Tokenizer, rule: str, scan: Scan) -> tuple[tuple[str, ...], str]:
        """Second pass: return the key of each task's parts, and the library that encoded them."""
        slow = self.work / SLOW_NAME
        try:
            return self._encode_with(tokenizer, rule, scan, fast=not slow.exists())
        except EncodersDisagreeError:
            log.warning("gigatoken gave other ids than tiktoken: encoding again with tiktoken.")
            slow.touch()
            return self._encode_with(tokenizer, rule, scan, fast=False)

    def _encode_with(
        self, tokenizer: Tokenizer, rule: str, scan: Scan, *, fast: bool
    ) -> tuple[tuple[str, ...], str]:
        lengths = defaultdict(list)
        for (number, document), n_bytes in scan.lengths.items():
            lengths[number].append((document, n_bytes))
        same_for_all = key_of(
            OUTPUT_VERSION, asdict(self.config), versions(), rule, fast, describe_tokenizer(tokenizer),
            key_of(tokenizer.file_content().decode("utf-8")),
        )  # fmt: skip
        keys = tuple(
            key_of(
                same_for_all,
                task.states,
                [source.span for source in task.sources],
                lengths[task.number],
            )
            for task in self.tasks
        )  # fmt: skip
        job = EncodeJob(
            folder=self.work, config=self.config, tokenizer=tokenizer, rule=rule, fast=fast,
            keys=keys, lengths=scan.lengths,
        )  # fmt: skip
        missing = [t for t in self.tasks if not is_complete(parts_done(self.work, keys[t.number]))]
        n_done = len(self.tasks) - len(missing)
        if n_done:
            log.info("%s of %s tasks were finished before.", f"{n_done:,}", f"{len(self.tasks):,}")
        size_bytes = sum(task.size_bytes for task in missing)
        progress = self.new_progress("encode", size_bytes)
        encoders = set(self.engine.run(job, iter(missing), len(missing), size_bytes, progress))
        if not encoders:  # all was finished before
            encoders = {make_encoder(tokenizer, fast=fast)[0]}
        return keys, encoders.pop()

    def _refuse_empty(self, n_documents: int, stats: Stats) -> None:
        if n_documents:
            return
        for path in (*self.work.glob("*.scan"), *self.work.glob("*.json")):
            path.unlink()  # it would be found again, and is nothing to go on from
        names = ", ".join(source.name for source in self.sources[:5])
        left_out = [f"{count:,} {reason}" for reason, count in stats.reasons.items()]
        left_out += [f"{stats.n_empty:,} empty"] if stats.n_empty else []
        raise DataError(
            f"{names}: no text found in {len(self.sources):,} files"
            + (f" (left out: {', '.join(left_out)})" if left_out else "")
            + ". Name text files, JSON lines, or archives of them."
        )

    def _meta(
        self, merged: Merged, rule: str, encoder: str, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        config = self.config
        by_source = merged.by_source.tolist()
        return {
            "dtype": token_dtype(tokenizer.vocab_size).name,
            "split": {"rule": rule, "val_fraction": config.val_fraction, "seed": config.seed},
            "splits": merged.splits,
            "n_documents": merged.n_documents,
            "n_duplicates": merged.n_duplicates,
            "sources": [
                {"name": source.name, "size_bytes": None if source.dataset else source.size_bytes}
                | {
                    split: dict(zip(("documents", "bytes", "tokens"), counts, strict=True))
                    for split, counts in zip(SPLITS, by_source[place], strict=True)
                }
                for place, source in enumerate(self.sources)
            ],
            **merged.stats.as_json(),
            "encoder": encoder,
            "made_from": self.made_from,
        }
