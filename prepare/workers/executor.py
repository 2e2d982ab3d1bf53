"""Where tasks run: in this process, in several on this machine, or on a Ray cluster.

A job is called with each task, in any order and any place; what it writes depends on the task
alone, and what it returns is short: a worker killed in the middle of a long answer would leave us
waiting for the rest. Processes, as Python code would wait for one interpreter lock. What each
place needs is imported only there.
"""

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeVar

from common.settings import check_ranges, setting
from prepare.sources.discover import Progress
from prepare.workers.tasks import Task

Result = TypeVar("Result")
Job = Callable[[Task, Progress], Result]

MIN_BYTES_PER_WORKER = 8 << 20  # on disk: a process takes some tenths of a second to start


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
        Closed before its end, or left by an exception, this ends the workers at once.

        Raises: what the job raises; DataError when a worker process dies.
        """
        submitted = map(on_submit, tasks)
        if self.engine == "ray":
            from prepare.workers.ray_executor import run_on_ray

            return run_on_ray(job, submitted, self.ray_address, self.workers, progress)
        # macOS does not say which cores a process may use
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        size_bytes = sum(task.size_bytes for task in tasks)
        wanted = self.workers or min(cores or 1, 1 + size_bytes // MIN_BYTES_PER_WORKER)
        workers = min(wanted, len(tasks))
        if workers <= 1:
            return (job(task, progress) for task in submitted)
        from prepare.workers.process_executor import run_in_processes

        return run_in_processes(job, submitted, workers, progress)
