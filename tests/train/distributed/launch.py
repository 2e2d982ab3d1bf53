"""Several processes as torchrun starts them, but forked from one that has loaded torch already.

That takes a second a job in place of ten. test_torchrun.py starts torchrun itself.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import run_python

DRIVER = """
import json, os, runpy, socket, sys, traceback
import torch.distributed.checkpoint, torch.distributed.fsdp, torch.distributed.tensor
import torch._dynamo  # what DistributedDataParallel imports
import train.pretrain, train.distributed.comm, train.evaluate, train.setup.autotune

folder = sys.argv[1]
train.evaluate.BATCH_TOKENS = {"cpu": 48}  # three rows: an odd number of batches to share
train.setup.autotune.MEASURE_S = 0.0
for number, (world_size, started, before, arguments) in enumerate(json.load(sys.stdin)):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(started):
        child = os.fork()
        if child == 0:
            file = os.open(f"{folder}/{number}.{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1), os.dup2(file, 2)
            if world_size:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )
            exec(before, {"rank": rank})
            sys.argv[1:] = arguments
            code = 0
            try:
                runpy.run_module("train", run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 99
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Job:
    """A train command in ``world_size`` processes; 0: in one, without torchrun's variables.

    ``before`` runs in each process first, and knows its ``rank``.
    """

    world_size: int
    arguments: list[str]
    before: str = ""
    n_started: int = field(default=-1)  # of them; all


@dataclass(frozen=True)
class Ended:
    """How each process ended, and what it said, in the order of the ranks."""

    codes: list[int]
    said: list[str]


def run_jobs(jobs: dict[str, Job], folder: Path, streams: Path) -> dict[str, Ended]:
    """Run the jobs one after another in ``folder``; return how each ended."""
    asked = [
        (job.world_size, max(1, job.world_size) if job.n_started < 0 else job.n_started,
         job.before, job.arguments)
        for job in jobs.values()
    ]  # fmt: skip
    driver = run_python(["-c", DRIVER, str(streams)], folder, typed=json.dumps(asked))
    assert driver.returncode == 0, driver.stderr
    codes = [json.loads(line) for line in driver.stdout.splitlines()]
    return {
        name: Ended(
            codes[number],
            [
                (streams / f"{number}.{rank}").read_text(encoding="utf-8")
                for rank in range(len(codes[number]))
            ],
        )
        for number, name in enumerate(jobs)
    }
