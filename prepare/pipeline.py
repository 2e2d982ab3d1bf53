"""The chain of prepare, in order, with memory that does not grow with the corpus.

    sources -> tasks -> first pass: how many documents, which vocabulary
                     -> second pass: shards of ids, each kept when finished
                     -> merged into data/

The sources are read twice where the vocabulary is learned from them or a document's length decides
its split, and once where neither is so. What is finished stays in data/.unfinished until the end:
the same command, started again after a kill, goes on from there.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from common.dataset import SPLITS, WORK_NAME, token_dtype
from common.errors import DataError
from common.files import make_folder
from common.tokenizer import CharTokenizer
from prepare.chunks import Stats
from prepare.config import ChatsConfig, PrepareConfig
from prepare.output.chats import add_template, chats_meta
from prepare.output.commit import commit, restore
from prepare.output.dataset_writer import merge
from prepare.output.shard import Shard, shard_keys
from prepare.output.shard_writer import EncodeJob
from prepare.readers.documents import read_source
from prepare.readers.json_values import OF_CHATS
from prepare.report.summary import CUTS
from prepare.sources.made_from import fingerprint_of, old_meta, stale_reason
from prepare.sources.source import VAL, Progress, SourceList
from prepare.sources.vocabulary import check_out
from prepare.tokens.encode import EncodersDisagreeError
from prepare.tokens.sample import CorpusSample, SampleJob, make_plan, with_some_val
from prepare.tokens.vocab_and_split import MIN_DOCUMENTS, Plan, named_tokenizer
from prepare.workers.executor import Executor, ReadSource, Task, key_of, make_tasks

log = logging.getLogger(__name__)

SLOW_NAME = "encode-with-tiktoken"  # gigatoken failed in this run
LOCK_SECONDS = 2.0  # what helps a killed run holds its lock too, and ends with what it is at
POLL_SECONDS = 0.05
FEW_IN_VAL = 20  # conversations

NewProgress = Callable[[str, int], Progress]  # of a pass: its name, and its bytes on disk


def prepare_corpus(
    sources: SourceList,
    config: PrepareConfig,
    out: Path,
    new_progress: NewProgress,
    executor: Executor = Executor(),  # noqa: B008  frozen
    read: ReadSource = read_source,
) -> dict[str, Any]:
    """Write a data folder from ``sources``; return its meta.json.

    Raise UserError for whatever in the sources or settings cannot be used; a data set that was
    there before is then as it was.
    """
    check_out(out, config.tokenizer, is_chats=config.is_chats)
    unreadable = (source.error for source in sources.others if source.error)
    if config.on_error == "fail" and (error := next(unreadable, "")):
        raise DataError(error)
    fingerprint = fingerprint_of(sources, asdict(config))
    if (old := old_meta(out)) is not None:
        reason = stale_reason(old.get("made_from", {}), fingerprint)
        if reason is None:
            log.info("%s: made of these sources, with these options: nothing to do.", out)
            if (out / WORK_NAME).exists():  # of a run that was killed when all but this was done
                with work_folder(out):
                    pass
            return old
        log.info("%s: made again: %s.", out, reason)
    if config.text_key.partition(".")[0] in OF_CHATS:
        log.warning("As text all is learned alike: python -m prepare chats learns the answers.")
    tasks = make_tasks(sources)
    with work_folder(out) as work:
        bound = partial(read, config=config)
        run = _Run(sources, tasks, config, work, key_of(fingerprint), new_progress, executor, bound)
        if config.is_chats and not has_val_files(run):
            run = replace(run, config=with_some_val(run.tasks, run.read, config))
        plan = _first_pass(run)
        shards, encoder = _second_pass(run, plan)
        vocab_size, dedup = plan.tokenizer.vocab_size, config.dedup == "exact"
        files, counts, stats = merge(tasks, shards, work, sources, vocab_size, dedup=dedup)
        _refuse_empty(run, counts["n_documents"], stats)
        _check_splits(run, plan.rule, counts, stats)
        meta = {
            "dtype": token_dtype(vocab_size).name,
            "split": {"rule": plan.rule, "val_fraction": config.val_fraction, "seed": config.seed},
            **counts,
            **stats.as_json(),
            "encoder": encoder,
            "made_from": fingerprint,
        }
        if isinstance(config, ChatsConfig):
            add_template(files, work)
            meta["chats"] = chats_meta(stats.chats, files, config.context)
        return commit(out, work, files, plan.tokenizer, meta)


@dataclass(frozen=True)
class _Run:
    """What is fixed from the beginning of a run."""

    sources: SourceList
    tasks: list[Task]
    config: PrepareConfig
    work: Path
    key: str  # of the sources and options
    new_progress: NewProgress
    executor: Executor
    read: ReadSource

    @property
    def learns(self) -> bool:
        """Whether the vocabulary is learned from the sources."""
        return self.config.tokenizer in ("bpe", "char")


def has_val_files(run: _Run) -> bool:
    """Return whether --val-files were named."""
    return any(flags & VAL for flags in run.sources.flags)


def _first_pass(run: _Run) -> Plan:
    """Decide on vocabulary and split, from a sample of the sources where that takes one."""
    plan = Plan.load(run.work, run.key)
    if plan is not None:
        log.info("Going on where an earlier run was stopped.")
        return plan
    published = None if run.learns else named_tokenizer(run.config.tokenizer)
    if isinstance(published, CharTokenizer) and not run.config.is_chats:
        raise DataError(
            f"--tokenizer {run.config.tokenizer}: a vocabulary of characters, which other texts go "
            "beyond: pass --tokenizer char, which takes one from these."
        )
    sample = CorpusSample()
    if run.learns or run.config.split_rule == "tail":
        sample = _sample(run, limit=None)
    elif run.config.split_rule == "auto" and not has_val_files(run):
        sample = _sample(run, limit=MIN_DOCUMENTS)
    plan = make_plan(run.work, sample, published, run.config, val_files=has_val_files(run))
    plan.save(run.key)
    for file in run.work.glob("*.sample"):
        file.unlink()
    return plan


def _sample(run: _Run, limit: int | None) -> CorpusSample:
    """Read all sources, or as many as hold ``limit`` documents."""
    job = SampleJob(read=run.read, config=run.config, folder=run.work, key=run.key, limit=limit)
    progress = run.new_progress("sample", sum(task.size_bytes for task in run.tasks))
    found = CorpusSample()

    def with_threshold(task: Task) -> Task:
        return replace(task, threshold=found.items.threshold)

    # As a rule the first has documents enough: no worker is started for it.
    here = run.tasks[: limit is not None]
    others = run.executor.run(job, run.tasks[len(here) :], progress, with_threshold)
    with closing(others):  # at once when we are stopped: workers would read on
        for path in chain((job(task, progress) for task in here), others):
            found.add(CorpusSample.load(path))
            if limit is not None and found.n_documents >= limit:
                break
    _refuse_empty(run, found.n_documents, found.stats)
    return found


def _second_pass(run: _Run, plan: Plan) -> tuple[list[Shard], str]:
    """Encode all sources: return the shard of each task, and the library that encoded them."""
    slow = run.work / SLOW_NAME
    try:
        return _encode(run, plan, fast=not slow.exists())
    except EncodersDisagreeError:
        log.warning("gigatoken gave other ids than tiktoken: encoding again with tiktoken.")
        slow.touch()
        return _encode(run, plan, fast=False)


def _encode(run: _Run, plan: Plan, *, fast: bool) -> tuple[list[Shard], str]:
    keys = shard_keys(run.tasks, plan, run.config, fast=fast)
    shards = [Shard(run.work, key, has_masks=run.config.is_chats) for key in keys]
    missing = [task for task, shard in zip(run.tasks, shards, strict=True) if not shard.recover()]
    if n_done := len(run.tasks) - len(missing):
        log.info("%s of %s tasks were finished before.", f"{n_done:,}", f"{len(run.tasks):,}")
    job = EncodeJob(read=run.read, config=run.config, plan=plan, shards=tuple(shards), fast=fast)
    progress = run.new_progress("encode", sum(task.size_bytes for task in missing))
    encoders = set(run.executor.run(job, missing, progress))
    return shards, encoders.pop() if encoders else job.encoder[0]  # all was finished before


def _refuse_empty(run: _Run, n_documents: int, stats: Stats) -> None:
    if n_documents:
        return
    shutil.rmtree(run.work)  # another run would find no more
    names = ", ".join(source.name for source in run.sources.take(range(min(5, len(run.sources)))))
    left_out = [f"{count:,} {reason}" for reason, count in stats.reasons.items()]
    left_out += [f"{stats.n_empty:,} empty"] if stats.n_empty else []
    left_out += [f"{n:,} {CUTS[key]}" for key, n in stats.chats.items() if key in CUTS]
    what, kind = ("conversation", "chats") if run.config.is_chats else ("text", "text files")
    raise DataError(
        f"{names}: no {what} found in {len(run.sources):,} files"
        + (f" (left out: {', '.join(left_out)})" if left_out else "")
        + f". Name {kind}, JSON lines, or archives of them."
    )


def _check_splits(run: _Run, rule: str, counts: dict[str, Any], stats: Stats) -> None:
    """Raise DataError where the split leaves nothing to train on; warn of what else is empty."""
    n_tokens = {split: counts["splits"][split]["tokens"] for split in SPLITS}
    why = {
        "hash": "Equal documents go the same way, few may: another --seed, --val-files, or more.",
        "tail": "The documents are too short to be cut: --val-files, or more text.",
        "files": "What is in --val-files is for val alone: name other sources for train.",
    }[rule]
    if not n_tokens["train"]:
        sentence = f"Nothing to train on: all text is val. {why}"
        if rule != "files":  # where val alone may be wanted
            shutil.rmtree(run.work)
            raise DataError(sentence)
        stats.warn(sentence)
    if not n_tokens["val"] and (rule == "files" or run.config.val_fraction):
        stats.warn(f"Val is empty, and training asks for some. {why}")
    n_val = counts["splits"]["val"]["documents"]
    if run.config.is_chats and rule == "hash" and 0 < n_val < FEW_IN_VAL:
        stats.warn(
            f"Val holds {n_val} of {counts['n_documents']:,} conversations, none of which is cut "
            "for it: its loss says little. More of them, or a larger --val-fraction, say more."
        )


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Lock the folder in ``out``, which stays where a run is stopped that can be resumed.

    Raise DataError when another run has locked it, or ``out`` cannot be written.
    """
    existed = out.exists()
    work = out / WORK_NAME
    try:
        make_folder(out)
        with _lock(work):
            restore(out, work)
            try:
                yield work
            except BaseException:
                if not [*work.glob("*.json"), *work.glob("*.sample")]:  # nothing to resume from
                    shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work)
    except OSError as error:  # those of reading are DataErrors already
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        if not existed:
            with suppress(OSError):  # not empty
                out.rmdir()


def _lock(work: Path) -> TextIO:
    """Return the file that locks ``work`` while it is open."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        # not found: another run ended just now, and took its folder with it
        with suppress(FileNotFoundError, BlockingIOError), ExitStack() as opened:
            work.mkdir(exist_ok=True)
            lock = opened.enter_context((work / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:  # 0: of a folder that is gone
                opened.pop_all()
                return lock
        time.sleep(POLL_SECONDS)
    raise DataError(
        f"{work.parent}: another prepare is writing there. Wait for it, or choose another --out."
    )
