"""Where tasks run: in this process, in several on this machine, or on a Ray cluster.

A job is called with each task, in any order and any place; what it writes depends on the task
alone, and what it returns is short: a worker killed in the middle of a long answer would leave us
waiting for the rest. Source of the choice: processes where Python code would wait for one
interpreter lock. What each place needs is imported only there.
"""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from prepare.sources.discover import Progress
from prepare.workers.tasks import Task

Result = TypeVar("Result")
Job = Callable[[Task, Progress], Result]

MIN_BYTES_PER_WORKER = 8 << 20  # on disk: a process takes some tenths of a second to start


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
            from prepare.workers.ray_executor import on_ray

            return on_ray(job, tasks, self.ray_address, self.workers, progress)
        # macOS does not say which cores a process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        wanted = self.workers or min(cores or 1, 1 + size_bytes // MIN_BYTES_PER_WORKER)
        workers = min(wanted, n_tasks)
        if workers <= 1:
            return (job(task, progress) for task in tasks)
        from prepare.workers.process_executor import in_processes

        return in_processes(job, tasks, workers, progress)
