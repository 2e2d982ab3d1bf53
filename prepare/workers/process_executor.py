"""Tasks in several processes on this machine.

ProcessPoolExecutor and not Pool, which waits for ever for a worker that was killed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_connection
from typing import Any, TypeVar

from common.errors import DataError
from prepare.forked import defer_signals, disable_fork
from prepare.sources.discover import Progress
from prepare.workers.tasks import Task

Result = TypeVar("Result")

QUEUED_PER_WORKER = 2  # tasks: no worker waits for one, and few are in memory
POLL_SECONDS = 0.1


def run_in_processes(
    job: Callable[[Task, Progress], Result],
    tasks: Iterator[Task],
    workers: int,
    progress: Progress,
) -> Generator[Result, None, None]:
    """Yield the result of each task as it comes; a task is taken only when its turn is near.

    Raises: what the job raises; DataError when a process dies.
    """
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
_job: Callable[[Task, Progress], Any]
_progress: Progress


def _begin_worker(job: Callable[[Task, Progress], Any], counter: Any) -> None:
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

    disable_fork()
    _job, _progress = job, report


def _work(task: Task) -> Any:
    return _job(task, _progress)
