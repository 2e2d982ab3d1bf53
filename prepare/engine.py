"""Where tasks run: in this process, in several on this machine, or on a Ray cluster.

A job is called with each task, in any order and any place; what it writes depends on the task
alone, and what it returns is short: a worker killed in the middle of a long answer would leave us
waiting for the rest. Source of the choice: processes where Python code would wait for one
interpreter lock; ProcessPoolExecutor and not Pool, which waits for ever for a worker that was
killed.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for_connection
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.errors import DataError
from prepare.apart import forbid, signals_held
from prepare.sources import Progress
from prepare.tasks import Task

Result = TypeVar("Result")
Job = Callable[[Task, Progress], Result]

AHEAD = 2  # tasks handed out for each worker: none waits for work, and few are in memory
POLL_SECONDS = 0.1
MIN_BYTES_PER_WORKER = 8 << 20  # on disk: a process takes some tenths of a second to start
N_RETRIES = 3  # of a Ray task whose worker died
CONNECT_SECONDS = 5.0  # to a Ray cluster; Ray itself would try for more than a minute


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where tasks run, as the person chose; it decides nothing about the bytes written."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None  # None: as many as there are cores, and work for
    ray_address: str | None = None

    def run(
        self,
        job: Job[Result],
        tasks: Iterator[Task],
        n_tasks: int,
        size_bytes: int,
        progress: Progress,
    ) -> Generator[Result, None, None]:
        """Yield the result of each task as it comes; a task is taken only when its turn is near.

        Closed before its end, or left by an exception, it ends the workers at once.

        Raises: what the job raises; DataError when a worker process dies.
        """
        if self.kind == "ray":
            return _on_ray(job, tasks, self.ray_address, self.workers, progress)
        # macOS does not say which cores a process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        wanted = self.workers or min(cores or 1, 1 + size_bytes // MIN_BYTES_PER_WORKER)
        workers = min(wanted, n_tasks)
        if workers <= 1:
            return (job(task, progress) for task in tasks)
        return _in_processes(job, tasks, workers, progress)


def _in_processes(
    job: Job[Result], tasks: Iterator[Task], workers: int, progress: Progress
) -> Generator[Result, None, None]:
    # Spawned, not forked: a fork would copy locks that threads of this process hold.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (job, counter))

    def submit(task: Task) -> "Future[Result]":
        with signals_held():  # a worker may be started here
            return pool.submit(_work, task)

    n_told = 0
    try:
        for pending in _handed_out(submit, tasks, AHEAD * workers):
            done, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            n_now = counter.get_obj().value  # without the lock: a worker may have died with it
            progress(n_now - n_told)
            n_told = n_now
            for future in done:
                pending.remove(future)
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process ended without a word: it was killed, or there was no memory left "
            "for it (--workers takes fewer). Run the same command again: it goes on from the "
            "parts that are finished."
        ) from error
    finally:
        # Not asked to end: one may be in a long call, or still at its imports though the others
        # have done all the work, and what is not on disk is made again.
        with signals_held():
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.kill()
        pool.shutdown(cancel_futures=True)


def _handed_out(
    submit: "Callable[[Task], Future[Result]]", tasks: Iterator[Task], limit: int
) -> "Iterator[set[Future[Result]]]":
    """Yield the tasks under way, again and again until none is left, never more than ``limit``."""
    pending: set[Future[Result]] = set()
    while True:
        while len(pending) < limit and (task := next(tasks, None)) is not None:
            pending.add(submit(task))
        if not pending:
            return
        yield pending


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

    forbid()
    _job, _progress = job, report


def _work(task: Task) -> Any:
    return _job(task, _progress)


def _on_ray(
    job: Job[Result],
    tasks: Iterator[Task],
    address: str | None,
    workers: int | None,
    progress: Progress,
) -> Generator[Result, None, None]:
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "--engine ray needs the package ray: .venv/bin/pip install -r requirements-ray.txt"
        ) from error
    thread = ThreadPoolExecutor(1)  # kept to the end: on Linux Ray's processes end with it
    try:
        _begin_ray(ray, thread, address, workers)
        _take_sigterm_back()
        held = ray.put(job)
        work = ray.remote(max_retries=N_RETRIES, num_cpus=1)(_ray_task)
        limit = workers or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: dict[Any, Task] = {}
        while True:
            while len(pending) < limit and (task := next(tasks, None)) is not None:
                pending[work.remote(held, task, os.getcwd())] = task
            if not pending:
                return
            done, _ = ray.wait(list(pending))
            for reference in done:
                task = pending.pop(reference)
                yield _result(ray, reference)
                progress(task.size_bytes)
    finally:
        ray.shutdown()
        thread.shutdown()
        _take_sigterm_back()


def _begin_ray(
    ray: Any, thread: ThreadPoolExecutor, address: str | None, workers: int | None
) -> None:
    start = partial(
        ray.init,
        address=address or "local",  # None would join any cluster that is found
        num_cpus=None if address else workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}},
    )
    try:
        _check_answers(address)
        begun = thread.submit(start)
        try:
            begun.result()
        finally:
            wait([begun])  # stopped halfway it would leave processes, hence the thread
    except (OSError, RuntimeError, ValueError) as error:
        if address is None:
            raise DataError(f"--engine ray: Ray does not start here ({error}).") from error
        raise DataError(
            f"--ray-address {address}: no Ray cluster answers there ({error}). Start one with "
            "'ray start --head', or leave the address out to start one on this machine."
        ) from error


def _take_sigterm_back() -> None:
    """Set Python's handler again: beginning and ending, Ray puts another one below it."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _check_answers(address: str | None) -> None:
    """Raise OSError when nothing listens at HOST:PORT; what else an address may be, Ray checks."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), CONNECT_SECONDS).close()


def _ray_task(job: Job[Any], task: Task, folder: str) -> Any:
    os.chdir(folder)  # what the paths are relative to
    forbid()
    return job(task, lambda n_bytes: None)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise DataError(
            f"A Ray worker died {N_RETRIES + 1} times at the same task ({error}). Run the same "
            "command again: it goes on from the parts that are finished."
        ) from error
