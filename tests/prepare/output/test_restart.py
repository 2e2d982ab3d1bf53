"""A prepare that was stopped in any way, at any moment, and run again writes what it would have."""

import gzip
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import pytest

from common.errors import DataError
from prepare.workers import executor
from tests.prepare.making import json_lines, prepare, snapshot, tar_of
from tests.processes import TIMEOUT_S, assert_one_sentence, run_python, start_python

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")

# Prepare with tasks and chunks so small that a short text has many of each. The workers,
# spawned, read this file too.
SMALL = """
import os, time
import prepare.readers.documents, prepare.output.shard_writer, prepare.chunks
import prepare.tokens.sample, prepare.workers.executor

prepare.workers.executor.GROUP_BYTES = 2_000
prepare.output.shard_writer.BATCH_BYTES = 1_000
prepare.chunks.MAX_CHUNK_BYTES = 3_000
prepare.tokens.sample.SAMPLE_BYTES = 20_000
if os.environ.get("QUERN_TEST_HELPERS"):  # for each task
    prepare.readers.documents.PREFETCH_BYTES = 1
write_json = prepare.output.shard_writer.write_json

def write_slowly(path, value):  # so that a signal finds the run still at work
    time.sleep(float(os.environ.get("QUERN_TEST_PACE", "0")))
    write_json(path, value)

prepare.output.shard_writer.write_json = write_slowly

if __name__ == "__main__":
    from common.errors import run
    from prepare.cli import main

    run(main, "prepare")
"""
OPTIONS = {
    "bpe": ["--tokenizer", "bpe", "--vocab-size", "300"],  # by tail
    "char": ["--tokenizer", "char", "--split-rule", "hash", "--dedup", "exact"],
    "gpt2": ["--tokenizer", "gpt2", "--split-rule", "hash"],  # without a first pass
}
UNFINISHED = Path("out", ".unfinished")
N_TASKS = 40  # of the many sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the scripts, few sources of each kind, and many of one kind."""
    from tests.tiny import words  # here: test_engine.py's workers import this, and need no torch

    folder = tmp_path_factory.mktemp("restart")
    (folder / "small.py").write_text(SMALL, encoding="utf-8")
    (folder / "dies.py").write_text(DIES, encoding="utf-8")
    few, many = folder / "few", folder / "many"
    few.mkdir()
    many.mkdir()
    texts = [words(5 + i % 40, seed=i) for i in range(120)]
    texts[20] = texts[60] = words(1_500, seed=999)  # in several pieces, and twice
    (few / "a.jsonl").write_bytes(json_lines(texts[:40]))
    (few / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(texts[40:80]), mtime=0))
    members = {f"{i}.txt": text.encode() for i, text in enumerate(texts[80:])}
    (few / "c.tar.xz").write_bytes(lzma.compress(tar_of(members)))
    (few / "d.txt").write_bytes(b"")
    (few / "e.bin").write_bytes(bytes(range(256)) * 20)
    for i in range(N_TASKS):
        texts = [words(5 + j % 60, seed=1_000 * i + j) for j in range(100)]
        (many / f"{i}.jsonl").write_bytes(json_lines(texts))
    return folder


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch, shared: Path) -> str:
    """Mark all processes of a test by their environment; return the mark."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    monkeypatch.setenv("QUERN_TEST", mark := uuid.uuid4().hex)
    return mark


def processes_with(mark: str) -> dict[int, str]:
    """Return the command lines of all live processes with ``mark`` in their environment."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name != str(os.getpid()) and mark in (process / "environ").read_text(
                encoding="utf-8", errors="replace"
            ):
                found[int(process.name)] = (
                    (process / "cmdline")
                    .read_text(encoding="utf-8", errors="replace")
                    .replace("\0", " ")
                )
        except (OSError, ValueError):  # ended meanwhile, or not a process
            continue
    return found


def assert_none_left(mark: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_with(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def of_data_set(out: Path) -> dict[str, bytes]:
    """Return all files in the folder; nothing but a data set must be there."""
    files = snapshot(out)
    vocabulary = next(iter(files.keys() & {"vocab.tiktoken", "vocab.json"}))
    assert files.keys() == {
        "train.bin", "train.idx", "train.names", "val.bin", "val.idx", "val.names", "names.txt",
        "meta.json", vocabulary,
    }  # fmt: skip
    return files


# In children of one process, which has read all modules: killed before each change on disk that
# prepare makes, and run again; or, for some, killed again and run a third time. (A kill loses
# nothing that was written, so flushing to disk is left out: it takes most of the time.)
KILLED_AT_EACH_CHANGE = """
import json, os, shutil, signal, sys, tempfile
import gigatoken, tiktoken, tqdm
import prepare.cli, prepare.pipeline, prepare.readers.parquet
import small
from common.errors import run
from tests.prepare.making import snapshot

CHANGES = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.truncate"}

def in_a_child(out, left):
    def deadly(event, values):
        nonlocal left
        if event in CHANGES or event == "open" and values[1] and set(values[1]) & set("wx+"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: None
        os.dup2(os.open(out + ".said", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        os.dup2(2, 1)
        sys.argv[1:] = ["text", "few", "--out", out, "--workers", "1", *options]
        sys.addaudithook(deadly)
        run(prepare.cli.main, "prepare")
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 3, open(out + ".said").read()
    return os.WIFSIGNALED(status)

options, every = json.loads(sys.argv[1]), int(sys.argv[2])
in_a_child("unstopped", 0)
expected = snapshot(prepare.pipeline.Path("unstopped"))
n = 1 - every
while in_a_child("out", n := n + every):
    if n % 3 == 1:
        in_a_child("out", 1 + n // 3)
    in_a_child("out", 0)
    assert (found := snapshot(prepare.pipeline.Path("out"))) == expected, (
        n, {name for name in found | expected if found.get(name) != expected.get(name)}
    )
    shutil.rmtree("out")
print(n)
"""


@pytest.mark.parametrize(
    ("tokenizer", "every"),
    [
        ("bpe", 4),
        ("char", 4),
        ("gpt2", 40),
        *(pytest.param(tokenizer, 1, marks=pytest.mark.slow) for tokenizer in OPTIONS),
    ],
)
def test_killed_before_any_change_on_disk_it_ends_as_if_it_were_not(
    tokenizer: str, every: int, folder: Path, tmp_path: Path
) -> None:
    for name in ("few", "small.py"):
        (tmp_path / name).symlink_to(folder / name)
    script = ["-c", KILLED_AT_EACH_CHANGE, json.dumps(OPTIONS[tokenizer]), str(every)]
    ended = run_python(script, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 60
    of_data_set(tmp_path / "unstopped")


def text_command(tokenizer: str, workers: int, script: str = "small.py") -> list[str]:
    where = ["--out", "out", "--workers", str(workers)]
    return [script, "text", "many", *where, *OPTIONS[tokenizer]]


@pytest.fixture
def work(folder: Path, tmp_path: Path) -> Path:
    """Return a folder with the many sources and the scripts, to run in."""
    for name in ("many", "small.py", "dies.py"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


Unstopped = Callable[[str], dict[str, bytes]]


@pytest.fixture(scope="module")
def unstopped(folder: Path, shared: Path) -> Unstopped:
    """Return a function that gives the data set of a run that nothing stopped, by tokenizer."""

    @lru_cache
    def made(tokenizer: str) -> dict[str, bytes]:
        run = folder / f"unstopped-{tokenizer}"
        run.mkdir()
        (run / "many").symlink_to(folder / "many")
        ended = run_python([str(folder / "small.py"), *text_command(tokenizer, 1)[1:]], run)
        assert ended.returncode == 0, ended.stderr
        return of_data_set(run / "out")

    return made


@contextmanager
def started(command: list[str], folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start a command as the first of a group of processes, as a terminal does."""
    with start_python(command, folder, os.setsid) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(reached: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def n_shards(folder: Path) -> int:
    return len(list((folder / UNFINISHED).glob(f"{'?' * 24}.json")))


def workers_of(mark: str) -> list[int]:
    return [pid for pid, line in processes_with(mark).items() if "spawn_main" in line]


def assert_goes_on(work: Path, tokenizer: str, workers: int, unstopped: Unstopped) -> None:
    """Hold that a run that was stopped goes on, and ends as one that was not."""
    ended = run_python(text_command(tokenizer, workers), work)
    assert ended.returncode == 0, ended.stderr
    assert of_data_set(work / "out") == unstopped(tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "workers", "n_moments"),
    [
        ("bpe", 2, 2),
        *(
            pytest.param(tokenizer, workers, 20, marks=pytest.mark.slow)
            for tokenizer in OPTIONS
            for workers in (1, 2)
        ),
    ],
)
def test_killed_at_a_random_moment_and_again_it_ends_as_if_it_were_not(
    tokenizer: str, workers: int, n_moments: int, work: Path, unstopped: Unstopped, mark: str
) -> None:
    command = text_command(tokenizer, workers)
    start = time.monotonic()
    assert run_python(command, work).returncode == 0
    seconds = time.monotonic() - start
    drawn = random.Random(workers)
    for _ in range(n_moments):
        shutil.rmtree(work / "out")
        for _ in range(2):
            with started(command, work) as process:
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=drawn.uniform(0.1, seconds))
                process.kill()
            assert_none_left(mark, 2)
        assert_goes_on(work, tokenizer, workers, unstopped)


# Whichever process opens a file of such a name for the nth time: the first of them all is killed.
DIES = """
import multiprocessing, os, re, signal
import small

name, left = os.environ["DIES_AT"].split()
left = int(left)

def deadly(event, values):
    global left
    if event == "open" and values[1] and "w" in values[1] and re.search(name, str(values[0])):
        left -= 1
        if left == 0:
            parent = multiprocessing.parent_process()
            os.kill(parent.pid if parent else os.getpid(), signal.SIGKILL)

if __name__ in ("__main__", "__mp_main__"):
    import sys
    sys.addaudithook(deadly)
if __name__ == "__main__":
    from common.errors import run
    from prepare.cli import main

    run(main, "prepare")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_finished_is_not_done_again(
    workers: int,
    work: Path,
    unstopped: Unstopped,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = text_command("bpe", workers)
    finished: dict[Path, tuple[int, int]] = {}
    said = []
    for name, n_opened in [
        (r"\.sample\.tmp$", 3),
        (r"plan\.json\.tmp$", 1),
        (r"[0-9a-f]{24}\.json\.tmp$", 8),
        (r"[0-9a-f]{24}\.json\.tmp$", 8),
        (r"unfinished/train\.idx$", 1),
    ]:
        monkeypatch.setenv("DIES_AT", f"{name} {n_opened}")
        ended = run_python(["dies.py", *command[1:]], work)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        said.append(ended.stderr)
        assert_none_left(mark, 2)
        now = {
            path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (work / UNFINISHED).iterdir()
            if path.suffix == ".sample" or path.with_suffix(".json").exists()
        }
        if (work / UNFINISHED / "plan.json").exists():
            finished = {path: state for path, state in finished.items() if path.suffix != ".sample"}
        assert finished.items() <= now.items()
        assert len(now) > len(finished)
        finished = now
    assert ["Going on where an earlier run was stopped." in text for text in said] == [
        False, False, False, True, True,
    ]  # fmt: skip
    ended = run_python(command, work)
    assert f"{N_TASKS} of {N_TASKS} tasks were finished before." in ended.stderr
    assert of_data_set(work / "out") == unstopped("bpe")


@pytest.mark.parametrize("n_times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(
    n_times: int, work: Path, unstopped: Unstopped, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(n_times)
    for _ in range(n_times):
        shutil.rmtree(work / "out", ignore_errors=True)
        monkeypatch.setenv("QUERN_TEST_PACE", "0.05")  # else it may have ended before
        with started(text_command("char", 3), work) as process:
            n_finished = drawn.randrange(30)
            wait_until(lambda: n_shards(work) >= n_finished, process)  # noqa: B023
            wait_until(lambda: len(workers_of(mark)) == 3, process)
            os.kill(drawn.choice(workers_of(mark)), signal.SIGKILL)
            killed_at = time.monotonic()
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - killed_at < 3
        ended = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
        assert_one_sentence(ended, "A worker process ended without a word", "same command again")
        assert_none_left(mark, 1)
        monkeypatch.delenv("QUERN_TEST_PACE")
        assert_goes_on(work, "char", 3, unstopped)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_end_with_the_one_that_began_them(
    workers: int, work: Path, unstopped: Unstopped, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERN_TEST_HELPERS", "1")
    monkeypatch.setenv("QUERN_TEST_PACE", "0.02")
    with started(text_command("bpe", workers), work) as process:
        wait_until(lambda: n_shards(work) > 3, process)
        wait_until(lambda: len(processes_with(mark)) > workers, process)
        process.kill()
    assert_goes_on(work, "bpe", workers, unstopped)  # at once: what holds the lock soon ends
    assert_none_left(mark, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_signals_stop_all_at_once_and_the_next_run_goes_on(
    workers: int, work: Path, unstopped: Unstopped, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERN_TEST_HELPERS", "1")
    monkeypatch.setenv("QUERN_TEST_PACE", "0.02")
    lock = work / UNFINISHED / "lock"
    n_seconds = 0.0  # after the beginning; the workers import for some tenths of a second
    for number, code, to_all, n_finished in [
        *[(signal.SIGINT, 130, True, 0)] * 5,  # as Ctrl-C in a terminal
        (signal.SIGTERM, 143, True, 0),
        (signal.SIGINT, 130, True, 1),
        (signal.SIGINT, 130, False, 8),
        (signal.SIGTERM, 143, False, 16),  # as kill
        (signal.SIGTERM, 143, True, 24),
    ]:
        if n_finished <= 1:
            shutil.rmtree(work / "out", ignore_errors=True)
        before = lock.stat().st_mtime_ns if lock.exists() else 0
        with started(text_command("bpe", workers), work) as process:
            wait_until(lambda: lock.exists() and lock.stat().st_mtime_ns > before, process)  # noqa: B023
            if n_finished:
                wait_until(lambda: n_shards(work) >= n_finished, process)  # noqa: B023
            else:
                wait_until(lambda: workers == 1 or bool(workers_of(mark)), process)
                time.sleep(n_seconds := n_seconds + 0.04)
            sent_at = time.monotonic()
            (os.killpg if to_all else os.kill)(process.pid, number)
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - sent_at < 2
        assert (process.returncode, stdout) == (code, ""), stderr
        usual = ("Going on where", *(f"{n} of {N_TASKS} tasks" for n in range(N_TASKS)))
        said = [line for line in stderr.splitlines() if line and not line.startswith(usual)]
        assert said == (["Stopped."] if code == 130 else [])
        assert_none_left(mark, 1)
    assert_goes_on(work, "bpe", workers, unstopped)


# Ctrl-C while gigatoken's first call imports from numpy: it ends with a panic, whatever was raised.
INTERRUPTED = """
import signal
from numpy.lib import NumpyVersion

of_version = NumpyVersion.__init__

def interrupted(self, version):
    NumpyVersion.__init__ = of_version
    signal.raise_signal(signal.SIGINT)
    of_version(self, version)

NumpyVersion.__init__ = interrupted

from common.errors import run
from prepare.cli import main

run(main, "prepare")
"""


def test_ctrl_c_within_a_library_in_rust_stops_as_elsewhere(work: Path) -> None:
    (work / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
    ended = run_python(text_command("gpt2", 1, "interrupted.py"), work)
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[-1] == "Stopped."
    assert "Traceback" not in ended.stderr
    assert "panicked" not in ended.stderr


def test_what_was_read_with_a_published_vocabulary_is_kept(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than 1,000 documents are all read before it is known how they are split."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    monkeypatch.setattr(executor, "GROUP_BYTES", 1)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"text {i}", encoding="utf-8")
    (tmp_path / "last.xz").write_bytes(lzma.compress(b"text")[:20])
    with pytest.raises(DataError, match="cut short"):
        prepare(list(tmp_path.iterdir()), tmp_path / "data", tokenizer="gpt2")
    assert len(list((tmp_path / "data" / ".unfinished").glob("*.sample"))) == 5
