"""Where tasks run decides nothing about what is written, and no way to end leaves a process."""

import importlib.util
import inspect
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, DataError, defer_signals
from prepare.config import PrepareConfig
from prepare.output.shard import Shard
from prepare.output.shard_writer import EncodeJob
from prepare.readers.documents import read_source
from prepare.sources.discover import find_sources
from prepare.sources.source import Progress, Source, SourceList
from prepare.tokens.sample import CorpusSample, SampleJob
from prepare.tokens.vocab_and_split import Plan
from prepare.workers.executor import QUEUED_PER_WORKER, Executor, Task, make_tasks
from tests.prepare.making import json_lines, snapshot
from tests.prepare.output.test_restart import SMALL
from tests.processes import TIMEOUT_S, assert_one_sentence, environment, run_python, start_python

LONG_S = 60
# What a process can write into a pipe in one piece. Source: POSIX PIPE_BUF, 4,096 on Linux.
PIPE_BYTES = 4_096
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


def tasks_in(folder: Path, n_tasks: int) -> list[Task]:
    """Return tasks of one small file each."""
    folder.mkdir(exist_ok=True)
    tasks = []
    for number in range(n_tasks):
        path = folder / f"{number}.txt"
        path.write_bytes(b"word " * (10 + number))
        source = Source(name=path.name, path=path)
        tasks.append(
            Task(
                number=number,
                sources=SourceList([source]),
                first_index=number,
                size_bytes=source.size_bytes,
            )
        )
    return tasks


def run(
    executor: Executor, job: Any, tasks: list[Task], progress: Progress = lambda n: None
) -> list[Any]:
    return list(executor.run(job, tasks, progress))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer: the failures looked for are hangs."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Numbers:
    """Returns the task's number, and tells its bytes."""

    def __call__(self, task: Task, progress: Progress) -> int:
        progress(task.size_bytes)
        return task.number


@dataclass(frozen=True)
class Ends:
    """Task 1 ends as ``how`` says, once the others, which take long, have said who they are."""

    folder: Path
    n_others: int
    how: str

    def __call__(self, task: Task, progress: Progress) -> int:
        if task.number != 1:
            (self.folder / f"{os.getpid()}.pid").touch()
            time.sleep(LONG_S)
        while len(list(self.folder.glob("*.pid"))) < self.n_others:
            time.sleep(0.01)
        if self.how == "returns":
            return task.number
        if self.how == "raises":
            raise ConfigError("story.txt: cannot be read.")
        if self.how == "is killed with the lock held":
            inspect.getclosurevars(progress).nonlocals["counter"].get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class OneIsLate:
    """Only the first worker that is given the job ever begins to work."""

    folder: Path

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(LONG_S)

    def __call__(self, task: Task, progress: Progress) -> int:
        return task.number


@dataclass(frozen=True)
class DiesFirst:
    """Kills its process the first ``n_times`` that task 1 is tried."""

    folder: Path
    n_times: int

    def __call__(self, task: Task, progress: Progress) -> int:
        n_tried = len(list(self.folder.glob("try-*")))
        if task.number == 1 and n_tried < self.n_times:
            (self.folder / f"try-{n_tried}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task.number == 2 and self.n_times > 1:
            raise ConfigError("story.txt: cannot be read.")
        return task.number


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_every_task_is_done_once_and_all_bytes_are_told(
    workers: int | None, tmp_path: Path
) -> None:
    tasks = tasks_in(tmp_path, 9)
    told: list[int] = []
    done = run(Executor(workers=workers), Numbers(), tasks, told.append)
    assert sorted(done) == list(range(9))
    assert sum(told) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert not multiprocessing.active_children()


def test_tasks_are_taken_when_their_turn_is_near(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, 30)
    taken = 0

    def handed(task: Task) -> Task:
        nonlocal taken
        taken += 1
        return task

    results = Executor(workers=2).run(Numbers(), tasks, lambda n: None, handed)
    for n_done, _ in enumerate(results, 1):
        assert taken < n_done + 2 * QUEUED_PER_WORKER


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("raises", ConfigError, r"^story\.txt: cannot be read\.$"),
        ("is killed", DataError, "A worker process ended without a word"),
        ("is killed with the lock held", DataError, "A worker process ended without a word"),
    ],
)
def test_however_one_worker_ends_all_end_at_once_with_a_sentence(
    how: str, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    tasks = tasks_in(tmp_path / "src", 6)
    with time_limit(LONG_S / 2), pytest.raises(error, match=sentence):
        run(Executor(workers=3), Ends(tmp_path, 2, how), tasks)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(pids) >= 2  # the one that raised may have begun another
    assert not any(map(is_alive, pids))
    assert not multiprocessing.active_children()


def test_a_run_that_is_closed_before_its_end_ends_its_workers(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path / "src", 6)
    job = Ends(tmp_path, 2, "returns")
    results = Executor(workers=3).run(job, tasks, lambda n: None)
    with time_limit(LONG_S / 2), closing(results):
        assert next(results) == 1
    assert not any(is_alive(int(path.stem)) for path in tmp_path.glob("*.pid"))


def test_a_worker_that_is_late_is_not_waited_for(tmp_path: Path) -> None:
    """A past bug: a signal in that wait left the worker to find its locks gone, in words."""
    tasks = tasks_in(tmp_path / "src", 6)
    with time_limit(LONG_S / 2):
        assert sorted(run(Executor(workers=2), OneIsLate(tmp_path), tasks)) == list(range(6))
    assert not multiprocessing.active_children()


def test_what_a_worker_sends_back_fits_into_a_pipe_at_once(tmp_path: Path) -> None:
    """Of a longer answer the rest would be waited for, were the worker killed in the middle."""
    from tests.tiny import byte_tokenizer, words  # here: the workers need not import torch

    (tmp_path / "a.txt").write_text(words(50_000), encoding="utf-8")
    [task] = make_tasks(find_sources([tmp_path / "a.txt"]))
    config = PrepareConfig(tokenizer="bpe")
    read = partial(read_source, config=config)
    sampled = SampleJob(read=read, config=config, folder=tmp_path, key="key")(task, lambda n: None)
    assert len(CorpusSample.load(sampled).items.items()[0].text) > 200_000
    plan = Plan(folder=tmp_path, tokenizer=byte_tokenizer(), rule="hash", lengths=[])
    shards = (Shard(tmp_path, "key"),)
    job = EncodeJob(read=read, config=config, plan=plan, shards=shards, fast=False)
    encoded = job(task, lambda n: None)
    for answer in (sampled, encoded):
        assert len(pickle.dumps(answer)) < PIPE_BYTES / 4  # in a tuple of the pool's


# Of the command line: real processes from here on.

# gigatoken as it is, but for texts with 'wrong' in them; in the workers too.
WRONG = (
    """
import gigatoken

class Wrong:
    real = gigatoken.Tokenizer

    @classmethod
    def from_tiktoken(cls, path, pretokenizer):
        made = cls()
        made.encoder = cls.real.from_tiktoken(path, pretokenizer=pretokenizer)
        return made

    def encode(self, text):
        ids = self.encoder.encode(text)
        return ids[::-1] if b"wrong" in text else ids

gigatoken.Tokenizer = Wrong
"""
    + SMALL
)


@pytest.fixture
def work(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in, with the scripts and sources for several tasks."""
    from tests.tiny import words

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    (tmp_path / "on_ray.py").write_text(SMALL.replace(SMALL_SAMPLE, ""), encoding="utf-8")
    for place, name in enumerate("abcde"):
        texts = [words(5 + i, seed=100 * place + i) for i in range(60)]
        texts[7] = words(1_500, seed=3)  # in several pieces, and in each source
        if name == "a":
            texts[20] = "these words are wrong to gigatoken"
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(texts))
    return tmp_path


# Workers of Ray do not read the script; of its sizes, this one alone decides which ids there are.
SMALL_SAMPLE = "prepare.tokens.sample.SAMPLE_BYTES = 20_000\n"
assert SMALL_SAMPLE in SMALL
ALL = [f"{name}.jsonl" for name in "abcde"]
BPE = ["--tokenizer", "bpe", "--vocab-size", "300", "--dedup", "exact"]
GPT2 = ["--tokenizer", "gpt2", "--split-rule", "hash"]  # without a first pass


def prepared(
    work: Path, arguments: list[str], script: str = "small.py"
) -> tuple[dict[str, bytes], str]:
    """Return all files of the data set that a command writes, and what it said."""
    with start_python([script, "text", "--out", "out", *arguments], work, os.setsid) as process:
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stderr
    assert_none_left(process.pid, 2)
    files = snapshot(work / "out")
    subprocess.run(["rm", "-r", work / "out"], check=True)
    return files, stderr


def processes_of(session: int) -> list[str]:
    """Return the names of the live processes of a session, orphans too."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "sess=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [" ".join(row) for row in rows if row[0] == str(session) and row[1][0] != "Z"]


def assert_none_left(session: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_of(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_neither_workers_nor_the_order_of_sources_change_a_byte(work: Path) -> None:
    expected, _ = prepared(work, [*ALL, *BPE, "--workers", "1"])
    assert {"train.bin", "val.idx", "meta.json", "vocab.tiktoken"} < expected.keys()
    assert json.loads(expected["meta.json"])["n_duplicates"] == 4
    for sources, workers in [(ALL, "2"), (ALL[::-1], "4"), (["d.jsonl", *ALL, "./a.jsonl"], "3")]:
        found, _ = prepared(work, [*sources, *BPE, "--workers", workers])
        assert found == expected


def test_what_a_worker_finds_wrong_with_gigatoken_is_encoded_again_by_tiktoken(work: Path) -> None:
    for options in (BPE, GPT2):
        right, _ = prepared(work, [*ALL, *options])
        found, said = prepared(work, [*ALL, *options, "--workers", "2"], "wrong.py")
        assert "gigatoken gave other ids than tiktoken: encoding again with tiktoken." in said
        assert "Traceback" not in said
        meta = json.loads(found.pop("meta.json"))
        changed = {"encoder": "tiktoken", "meta_sha256": meta["meta_sha256"]}
        assert meta == json.loads(right.pop("meta.json")) | changed
        assert found == right


def test_ray_that_is_not_installed_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"needs the package ray: .* -r requirements-ray\.txt"):
        run(Executor(engine="ray"), Numbers(), tasks_in(tmp_path, 1))


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:{free}", "ray://127.0.0.1:{free}", "nonsense"])
def test_a_wrong_ray_address_is_a_sentence_at_once(address: str, work: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = address.format(free=listener.getsockname()[1])
    command = ["small.py", "text", *ALL, *GPT2, "--engine", "ray", "--ray-address", address]
    start = time.monotonic()
    ended = run_python(command, work)
    assert_one_sentence(ended, f"--ray-address {address}: no Ray cluster answers there")
    assert time.monotonic() - start < 10


@needs_ray
@pytest.mark.parametrize("options", [GPT2, pytest.param(BPE, marks=pytest.mark.slow)])
def test_on_ray_no_byte_is_another_and_no_process_is_left(options: list[str], work: Path) -> None:
    expected, _ = prepared(work, [*ALL, *options, "--workers", "1"], "on_ray.py")
    on_ray = ["--engine", "ray", "--workers", "2"]
    found, said = prepared(work, [*ALL, *options, *on_ray], "on_ray.py")
    assert found == expected
    assert not [line for line in said.splitlines() if not line.startswith(("sample", "encode", ""))]


ON_RAY = """
import sys
import threading
from pathlib import Path
from common.errors import UserError
from prepare.workers.executor import Executor
from tests.prepare.workers.test_executor import DiesFirst, run, tasks_in

folder, n_times = Path(sys.argv[1]), int(sys.argv[2])
try:
    job = DiesFirst(folder, n_times)
    tasks = tasks_in(folder / "src", int(sys.argv[3]))
    print(sorted(run(Executor(engine="ray", workers=2), job, tasks)))
except UserError as error:
    print(type(error).__name__, error.message)
"""


@needs_ray
@pytest.mark.parametrize(
    ("n_times", "n_tasks", "said"),
    [
        (1, 4, "[0, 1, 2, 3]"),
        pytest.param(4, 2, "DataError A Ray worker died 4 times at", marks=pytest.mark.slow),
        pytest.param(2, 4, "ConfigError story.txt: cannot be read.\n", marks=pytest.mark.slow),
    ],
)
def test_a_ray_worker_that_dies_is_followed_by_another_but_not_for_ever(
    n_times: int, n_tasks: int, said: str, tmp_path: Path
) -> None:
    script = ["-c", ON_RAY, str(tmp_path), str(n_times), str(n_tasks)]
    with start_python(script, tmp_path, os.setsid) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert said in stdout, stderr  # after what Ray says
    assert_none_left(process.pid, 2)
    assert n_times == 2 or len(list(tmp_path.glob("try-*"))) == n_times


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("ready", "seconds"), [("lock", 1), ("*.sample", 0)])  # Ray begins; works
def test_signals_end_ray_too(
    number: int, code: int, ready: str, seconds: float, work: Path
) -> None:
    command = ["small.py", "text", *ALL, *BPE, "--engine", "ray", "--out", "out"]
    with start_python(command, work, os.setsid) as process:
        while not list((work / "out" / ".unfinished").glob(ready)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(process.pid, number)
        stdout, stderr = process.communicate(timeout=15)
    assert (process.returncode, stdout) == (code, "")
    assert "Traceback" not in stderr
    assert_none_left(process.pid, 5)


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_was_started_elsewhere_writes_the_same_bytes(
    work: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = prepared(work, [*ALL, *BPE, "--workers", "1"], "on_ray.py")
    # By itself 'ray start' makes a token, and lets in only those who know it.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    elsewhere = tmp_path_factory.mktemp("cluster")
    without_us = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    start = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start, "--include-dashboard=false"],
        cwd=elsewhere, env=without_us, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as cluster:  # fmt: skip
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            time.sleep(5)  # it listens before it can be joined
            address = f"127.0.0.1:{port}"
            on_ray = ["--engine", "ray", "--ray-address", address]
            found, _ = prepared(work, [*ALL, *BPE, *on_ray], "on_ray.py")
        finally:
            cluster.terminate()
            cluster.wait(TIMEOUT_S)
    assert found == expected
    assert_none_left(cluster.pid, 30)


def test_a_signal_that_another_thread_is_given_waits_until_workers_are_started() -> None:
    """A past bug: the handler ran in the middle of a start, whose worker then died in words."""
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)  # it does not block signals
    other.start()
    begun = []

    def start_worker() -> None:
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(20):
                time.sleep(0.005)
            begun.append("worker")

    try:
        with pytest.raises(KeyboardInterrupt):
            start_worker()
    finally:
        ended.set()
        other.join()
    assert begun == ["worker"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
