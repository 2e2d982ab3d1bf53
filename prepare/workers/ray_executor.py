"""Tasks on a Ray cluster, or on one that is started here."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import DataError

QUEUED_PER_CORE = 2  # tasks handed out to the cluster
N_RETRIES = 3  # of a task whose worker died
CONNECT_SECONDS = 5.0  # to a cluster; Ray itself would try for more than a minute


def run_on_ray(
    job: Callable[..., Any],
    tasks: Iterator[Any],
    address: str | None,
    workers: int | None,
    progress: Callable[[int], object],
) -> Generator[Any, None, None]:
    """Yield the result of each task as it comes; one whose worker dies is begun again.

    Raise what the job raises, and DataError when there is no Ray, no cluster, or no worker lives.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "--engine ray needs the package ray: .venv/bin/pip install -r requirements-ray.txt"
        ) from error
    thread = ThreadPoolExecutor(1)  # kept to the end: on Linux Ray's processes end with it
    try:
        _begin_ray(ray, thread, address, workers)
        _restore_sigterm()
        shared_job = ray.put(job)
        work = ray.remote(max_retries=N_RETRIES, num_cpus=1)(_work)
        limit = workers or QUEUED_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: dict[Any, Any] = {}
        while True:
            while len(pending) < limit and (task := next(tasks, None)) is not None:
                pending[work.remote(shared_job, task, os.getcwd())] = task
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
        _restore_sigterm()


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
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}},
    )
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdecimal():  # what else an address may be, Ray checks
            place = host.removeprefix("ray://"), int(port)
            socket.create_connection(place, CONNECT_SECONDS).close()
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


def _restore_sigterm() -> None:
    """Set Python's handler again: beginning and ending, Ray puts another one below it."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _work(job: Callable[..., Any], task: Any, folder: str) -> Any:
    os.chdir(folder)  # what the paths are relative to
    return job(task, lambda n_bytes: None)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise DataError(
            f"A Ray worker died {N_RETRIES + 1} times at the same task ({error}). Run the same "
            "command again: it goes on from the shards that are finished."
        ) from error
