"""The commands as a person types them, each in a child of one process that has loaded torch."""

import json
import logging
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# what the commands import late: else each child would
import train.pretrain  # noqa: F401
from tests.faults.calls import Failing, Watch, watched
from tests.faults.jobs import sources
from tests.train.runs import options

Before = Callable[[], object]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, or minus the signal's number, and what it wrote."""

    code: int
    stdout: str
    stderr: str
    ended_at: float  # by the monotonic clock
    met: str  # the call that a Watch refused first, or when a signal was sent


def start(root: Path, command: list[str], watch: Watch | None = None, before: Before = int) -> int:
    """Start a stage's command in ``root``, below which ``watch`` sees all calls; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(root)
        for stream in (1, 2):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(f"{root}.{stream}", flags, 0o600), stream)
        logging.disable(logging.NOTSET)
        sys.argv[1:] = command[1:]
        before()
        with watched(root, watch or Watch()):
            runpy.run_module(command[0], run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        if isinstance(watch, Failing):
            Path(f"{root}.met").write_text(watch.path, encoding="utf-8")
        os._exit(code)


def wait(root: Path, child: int) -> Ended:
    """Wait for the end of a child that was started there."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = []
    for name in ("1", "2", "met"):
        path = Path(f"{root}.{name}")
        said.append(path.read_text(encoding="utf-8") if path.exists() else "")
        path.unlink(missing_ok=True)
    return Ended(status, said[0], said[1], time.monotonic(), said[2])


def run(root: Path, command: list[str], watch: Watch | None = None, before: Before = int) -> Ended:
    """Run a command to its end."""
    return wait(root, start(root, command, watch, before))


def kill_after(root: Path, command: list[str], seconds: float) -> Ended:
    """Run a command, and end it by SIGKILL after so many seconds if it is not over by then."""
    child = start(root, command)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.001)
    else:
        os.kill(child, signal.SIGKILL)
    return wait(root, child)


def prepare_command(place: Path, *, new: bool = True, tokenizer: str = "char") -> list[str]:
    """Return the command that prepares one of two texts into data/."""
    source = str(sources(place)[new])
    return ["prepare", "text", source, "--tokenizer", tokenizer, "--out", "data"]


def train_command(data: Path | str, **changed: object) -> list[str]:
    """Return the command that trains a tiny run, or goes on with it where it was interrupted."""
    short = {"max_steps": 4, "eval_interval": 4, "save_interval": 2, "log_interval": 2} | changed
    where = ["--data", str(data), "--run", "tiny", "--resume"]
    return ["train", "pretrain", *where, *options(**short)]


def resume_command() -> list[str]:
    """Return the command that goes on with the run."""
    return ["train", "resume", "tiny", "--device", "cpu"]


GENERATE = ["sample", "generate", "--prompt", "the ", "--max-new-tokens", "20",
            "--device", "cpu"]  # fmt: skip


def trained_bytes(runs: Path) -> tuple[bytes, ...]:
    """Return weights, optimizer and best of the newest run, and what it logged but for times."""
    latest = max(runs.glob("*/latest"), key=lambda path: path.stat().st_mtime_ns)
    run = latest.parent
    last = run / latest.read_text(encoding="utf-8").strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    logged = [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")}
              for line in lines]  # fmt: skip
    names = ("model.safetensors", "optimizer.safetensors")
    files = [*(last / name for name in names), run / "best"]
    return (*(file.read_bytes() for file in files), json.dumps(logged).encode())
