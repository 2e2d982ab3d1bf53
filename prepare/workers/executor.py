"""The work cut into tasks, and where they run: in this process, in several, or on a Ray cluster.

A job is called with each task, in any order and any place; what it writes depends on the task
alone, and what it returns is short: a worker killed in the middle of a long answer would leave us
waiting for the rest. Processes, as Python code would wait for one interpreter lock; and
ProcessPoolExecutor, as multiprocessing's Pool waits for ever for a worker that was killed.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing.connection import wait as wait_for_connection
from typing import Any, Literal, TypeVar

from common.cpus import available_cpus
from common.errors import DataError, defer_signals
from common.settings import check_ranges, setting
from prepare.chunks import Chunk, ChunkEnd, Stats
from prepare.sources.source import Progress, SourceList

ReadSource = Callable[..., Iterator[Chunk]]  # documents.read_source, but for its config

GROUP_BYTES = 4 << 20  # on disk: enough for what a task costs besides, small enough to share out
MIN_BYTES_PER_WORKER = 8 << 20  # on disk: a process takes some tenths of a second to start
QUEUED_PER_WORKER = 2  # tasks: no worker waits for one, and few are in memory
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A source, a byte range of a big one, or several small ones in a row."""

    number: int  # of the task, in order
    sources: SourceList  # as they were when the run began
    first_index: int  # of the first, among the sources that the person named
    size_bytes: int  # on disk, when the run began
    threshold: float = 1.0  # a sample of it needs no item of this unit hash or above

    def documents(
        self, read: ReadSource, stats: Stats, progress: Progress
    ) -> Generator[tuple[int, bytes, ChunkEnd], None, None]:
        """Yield the chunks of its documents, each with the index of its source in ``sources``.

        Raise DataError when a source is not what it was when the run began.
        """
        self.sources.check_unchanged()
        for source_index, source in enumerate(self.sources):
            for text, end in read(source, stats=stats, progress=progress):
                yield source_index, text, end
        self.sources.check_unchanged()


Result = TypeVar("Result")
Job = Callable[[Task, Progress], Result]


def make_tasks(sources: SourceList) -> list[Task]:
    """Group sources into tasks of at least GROUP_BYTES; byte ranges of a big one stand alone."""
    tasks: list[Task] = []

    def add(part: SourceList, first_index: int) -> None:
        if len(part):
            size, number = sum(part.sizes), len(tasks)
            tasks.append(
                Task(number=number, sources=part, first_index=first_index, size_bytes=size)
            )

    start = size_bytes = 0
    for i, n_bytes in enumerate(sources.sizes):
        size_bytes += n_bytes
        ranges = sources.byte_ranges(i)
        if ranges or size_bytes >= GROUP_BYTES:
            add(sources.take(range(start, i if ranges else i + 1)), start)
            for part in ranges:
                add(part, i)
            start, size_bytes = i + 1, 0
    add(sources.take(range(start, len(sources))), start)
    return tasks


def key_of(*parts: Any) -> str:
    """Return a name for what ``parts``, as JSON, describe.

    What a task wrote under the name of all that decides its bytes is found again after a kill, and
    is never taken for the work of other sources or options.
    """
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where tasks run, as the person chose; it decides nothing about the bytes written."""

    workers: int | None = setting(
        None,
        "Processes that read and encode; by default as many as there are cores, and work for.",
        at_least=1,
    )
    engine: Literal["local", "ray"] = setting(
        "local", "Where they run: on this machine, or as tasks of Ray (requirements-ray.txt)."
    )
    ray_address: str | None = setting(
        None,
        "Ray cluster to join; without, one is started here. Its nodes must see SRC and --out.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def run(
        self,
        job: Job[Result],
        tasks: list[Task],
        progress: Progress,
        on_submit: Callable[[Task], Task] = lambda task: task,
    ) -> Generator[Result, None, None]:
        """Yield the result of each task as it comes.

        A task is submitted, as ``on_submit`` returns it, only when a worker is soon free for it.
        Closed before its end, or left by an exception, this ends the workers at once. Raise what
        the job raises, and DataError when a worker process dies.
        """
        submitted = map(on_submit, tasks)
        if self.engine == "ray":
            from prepare.workers.ray_executor import run_on_ray

            return run_on_ray(job, submitted, self.ray_address, self.workers, progress)
        size_bytes = sum(task.size_bytes for task in tasks)
        wanted = self.workers or min(available_cpus(), 1 + size_bytes // MIN_BYTES_PER_WORKER)
        workers = min(wanted, len(tasks))
        if workers <= 1:
            return (job(task, progress) for task in submitted)
        return _run_in_processes(job, submitted, workers, progress)


def _run_in_processes(
    job: Job[Result], tasks: Iterator[Task], workers: int, progress: Progress
) -> Generator[Result, None, None]:
    # Spawned, not forked: a fork would copy locks that threads of this process hold.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (job, counter))
    pending: set[Future[Result]] = set()
    n_reported = 0
    try:
        while True:
            while len(pending) < QUEUED_PER_WORKER * workers and (task := next(tasks, None)):
                with defer_signals():  # a worker may be started here
                    pending.add(pool.submit(_work, task))
            if not pending:
                return
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            n_now = counter.get_obj().value  # without the lock: a worker may have died with it
            progress(n_now - n_reported)
            n_reported = n_now
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process ended without a word: it was killed, or there was no memory left "
            "for it (--workers takes fewer). Run the same command again: it goes on from the "
            "shards that are finished."
        ) from error
    finally:
        # Not asked to end: one may be in a long call, or still at its imports though the others
        # have done all the work, and what is not on disk is made again.
        with defer_signals():
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.kill()
        pool.shutdown(cancel_futures=True)


# Set once in each worker, when it begins: a pool hands its tasks nothing else.
_job: Job[Any]
_progress: Progress


def _begin_worker(job: Job[Any], counter: Any) -> None:
    """Set up a worker: it ends when it is killed, or when the process that began it is gone."""
    global _job, _progress
    # Ctrl-C reaches all processes of a terminal, but the first decides; the pool ends by SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait_for_connection([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()

    def report(n_bytes: int) -> None:
        with counter.get_lock():
            counter.value += n_bytes

    _job, _progress = job, report


def _work(task: Task) -> Any:
    return _job(task, _progress)
