"""Start the stages as a person does: ``python -m train ...`` in a folder of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120  # of a process that hangs: nothing here takes a tenth of it


def children() -> list[str]:
    """Return the ids of the processes that this one began and has not waited for.

    But for multiprocessing's resource tracker, which stays to the end.
    """
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [pid for pid in found if b"tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def environment() -> dict[str, str]:
    """Return this process's variables, with our packages importable and one thread of arithmetic.

    More threads only get into each other's way in networks as small as the tests'.
    """
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start_python(
    arguments: Sequence[str], folder: Path, before: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    """Start Python with ``arguments`` in ``folder``; its three streams are pipes of UTF-8."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=before,
    )


def run_python(
    arguments: Sequence[str],
    folder: Path,
    *,
    typed: str = "",
    before: Callable[[], None] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run Python to its end, with ``typed`` as its standard input."""
    with start_python(arguments, folder, before) as process:
        stdout, stderr = process.communicate(typed, timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


# Loads torch and compiled kernels once; each command then runs in a process of its own, forked
# from that.
FORK_EACH = """
import contextlib, json, os, runpy, sys, traceback
import train.pretrain, sample.chat.session
from common.inference.cpu.backend import CpuBackend
from common.models.config import ModelConfig
from common.models.gpt import GPT

commands, folder, in_terminal = json.loads(sys.argv[1])
if any(stage == "sample" for stage, *_ in commands):
    smallest = ModelConfig(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=2)
    CpuBackend(GPT(smallest), n_threads=1).make_cache(1)

for number, (stage, *arguments) in enumerate(commands):
    paths = [os.path.join(folder, f"{number}.{name}") for name in ("stdin", "stdout", "stderr")]
    stdin, stdout, stderr = (os.open(path, os.O_RDWR | os.O_CREAT) for path in paths)
    ours, terminal = os.openpty()
    child = os.fork()
    if child == 0:
        os.dup2(stdin, 0)
        os.dup2(terminal if number in in_terminal else stdout, 1)
        os.dup2(stderr, 2)
        sys.argv[1:] = arguments
        code = 0
        try:
            runpy.run_module(stage, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(terminal)
    with contextlib.suppress(OSError):  # so Linux says that a terminal has no more
        while written := os.read(ours, 4_096):
            os.write(stdout, written)
    for stream in (ours, stdin, stdout, stderr):
        os.close(stream)
"""


def run_each(
    commands: dict[str, list[str]],
    folder: Path,
    *,
    typed: dict[str, str] | None = None,
    in_terminal: Collection[str] = (),
) -> "dict[str, subprocess.CompletedProcess[str]]":
    """Run several commands, such as ``["train", "resume"]``; return how each ended, by its name.

    ``typed`` is what those named read; those ``in_terminal`` write to one, less than 4,096 bytes.
    """
    with tempfile.TemporaryDirectory() as streams:
        for number, name in enumerate(commands):
            content = (typed or {}).get(name, "")
            Path(streams, f"{number}.stdin").write_text(content, encoding="utf-8")
        numbers = [number for number, name in enumerate(commands) if name in in_terminal]
        asked = json.dumps([[*commands.values()], streams, numbers])
        driver = run_python(["-c", FORK_EACH, asked], folder)
        assert driver.returncode == 0, driver.stderr
        codes = map(int, driver.stdout.split())
        return {
            name: subprocess.CompletedProcess(
                command,
                code,
                Path(streams, f"{number}.stdout").read_text(encoding="utf-8"),
                Path(streams, f"{number}.stderr").read_text(encoding="utf-8"),
            )
            for number, (code, (name, command)) in enumerate(
                zip(codes, commands.items(), strict=True)
            )
        }


def assert_one_sentence(process: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Hold that a command ended with 1 and a message with ``words``, and no traceback."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    last = process.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last
