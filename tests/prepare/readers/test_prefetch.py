"""Items made by another process: the same, with its errors, and it is gone at the end."""

import io
import lzma
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import DataError
from prepare.chunks import DROP, END, MAX_CHUNK_BYTES, MORE, NAME, Chunk, Stats, UnreadableError
from prepare.config import PrepareConfig
from prepare.readers.documents import PREFETCH_BYTES, read_source
from prepare.readers.prefetch import (
    BATCH_BYTES,
    BATCH_CHUNKS,
    PIPE_BYTES,
    ReaderDiedError,
    can_fork,
    prefetch,
)
from prepare.sources.source import ProgressFile, ReadCounter, Source
from tests.processes import children, run_python

CAN_FORK = can_fork  # before conftest.py replaces it
PARTS = [bytes([i]) * (BATCH_BYTES // 3 + i) for i in range(40)]


def made_apart(
    parts: Iterator[bytes], told: Callable[[int], object] = print, stats: Stats | None = None
) -> Generator[bytes]:
    chunks = prefetch(((part, MORE) for part in parts), ReadCounter(told), stats or Stats())
    with closing(chunks):
        for text, chunk_end in chunks:
            assert chunk_end is MORE
            yield text


def test_the_items_are_the_same() -> None:
    assert list(made_apart(iter(PARTS))) == PARTS
    assert list(made_apart(iter([]))) == []
    assert children() == []


def test_every_fate_and_length_comes_through() -> None:
    chunks: list[Chunk] = [(b"", DROP), (b"a", END), (bytes(3 * BATCH_BYTES), MORE), (b"", END)]
    assert list(prefetch(iter(chunks), ReadCounter(print), Stats())) == chunks


def test_many_tiny_and_few_huge_chunks_come_through() -> None:
    tiny = [(b"", DROP)] * (2 * BATCH_CHUNKS)
    chunks: list[Chunk] = [(bytes(BATCH_BYTES - 1), MORE), (b"a" * MAX_CHUNK_BYTES, END)]
    assert list(prefetch(iter([*tiny, *chunks]), ReadCounter(print), Stats())) == [*tiny, *chunks]


def test_they_are_made_in_another_process() -> None:
    (maker,) = set(made_apart(str(os.getpid()).encode() for _ in range(20)))
    assert int(maker) != os.getpid()


def test_it_makes_only_so_much_ahead(tmp_path: Path) -> None:
    """One batch is used here, the pipe holds some, one waits, and one is being made."""
    most = PIPE_BYTES // BATCH_BYTES + 3

    def make() -> Iterator[bytes]:
        for i in range(50):
            (tmp_path / str(i)).touch()
            yield bytes(BATCH_BYTES)

    chunks = made_apart(make())
    for n_used in range(1, 20):
        next(chunks)
        time.sleep(0.02)
        assert len(list(tmp_path.iterdir())) <= n_used + most
    chunks.close()
    assert len(list(tmp_path.iterdir())) < 40


@pytest.mark.parametrize("n_before", [0, 1, 20])
@pytest.mark.parametrize("kind", [DataError, UnreadableError])
def test_its_error_is_raised_here_behind_what_came_before_it(
    n_before: int, kind: type[DataError]
) -> None:
    def make() -> Iterator[bytes]:
        yield from PARTS[:n_before]
        raise kind("damaged at byte 9")

    chunks = made_apart(make())
    found: list[bytes] = []
    with pytest.raises(kind, match=r"^damaged at byte 9$") as raised:
        found.extend(iter(chunks.__next__, None))
    assert raised.type is kind
    assert found == PARTS[:n_before]
    assert children() == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a mistake")])
def test_other_errors_come_through_too(error: Exception) -> None:
    def make() -> Iterator[bytes]:
        yield from PARTS
        raise error

    found: list[bytes] = []
    with pytest.raises((OSError, RuntimeError), match=r"Input/output error|a mistake"):
        found.extend(iter(made_apart(make()).__next__, None))
    if isinstance(error, OSError):  # a disk that cannot be read further; what came before is good
        assert found == PARTS


@pytest.mark.parametrize("n_used", [0, 1, 5])
def test_it_ends_when_its_user_stops_early(n_used: int) -> None:
    chunks = made_apart(iter(PARTS))
    for _ in range(n_used):
        next(chunks)
    assert len(children()) == (n_used > 0)
    chunks.close()
    assert children() == []


LEFT_OPEN = """
import sys
from prepare.chunks import MORE, Stats
from prepare.readers.prefetch import prefetch
from prepare.sources.source import ReadCounter

chunks = prefetch(((bytes(1 << 20), MORE) for _ in range(1_000)), ReadCounter(id), Stats())
next(chunks)
sys.exit(5)
"""


def test_left_open_it_does_not_keep_its_user_from_ending(tmp_path: Path) -> None:
    assert run_python(["-c", LEFT_OPEN], tmp_path).returncode == 5


def test_killed_it_is_a_sentence() -> None:
    chunks = made_apart(iter(PARTS * 10))
    next(chunks)
    (process,) = children()
    os.kill(int(process), signal.SIGKILL)
    with pytest.raises(ReaderDiedError, match="was killed, or there was no memory left"):
        deque(chunks, maxlen=0)
    assert children() == []


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_killed_it_is_no_damage_of_what_it_reads(tmp_path: Path, on_error: str) -> None:
    """A past bug: with --on-error skip the rest of the file was left out, and the run went on."""
    path = tmp_path / "a.txt.xz"
    text = random.Random(0).randbytes(PREFETCH_BYTES).hex().encode()  # then more than is on its way
    path.write_bytes(lzma.compress(text + b"word " * (4 * PIPE_BYTES), preset=0))
    config = PrepareConfig(on_error=on_error)  # type: ignore[arg-type]
    chunks = read_source(Source(name="a", path=path), config, Stats(), print)
    next(chunks)
    (process,) = children()
    os.kill(int(process), signal.SIGKILL)
    with pytest.raises(ReaderDiedError):
        deque(chunks, maxlen=0)


def test_every_byte_that_it_reads_is_told_here_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 * BATCH_BYTES))
    told: list[int] = []
    counter = ReadCounter(told.append)
    with ProgressFile(path, counter) as file, io.BufferedReader(file) as stream:
        blocks = iter(lambda: stream.read(BATCH_BYTES), b"")
        chunks = prefetch(((block, END) for block in blocks), counter, Stats())
        assert sum(len(text) for text, _ in chunks) == 10 * BATCH_BYTES
        assert sum(told) == counter.n_read == 10 * BATCH_BYTES
        assert 0 not in told[:-1]


def test_what_it_found_is_known_here_at_its_end() -> None:
    stats = Stats(n_empty=1)
    stats.encodings["cp1252"] = 2

    def make() -> Iterator[bytes]:
        stats.n_empty += 1
        stats.skip("a", "broken")
        stats.encodings["cp1252"] += 1
        yield b"a"

    assert list(made_apart(make(), stats=stats)) == [b"a"]
    assert (stats.n_empty, stats.reasons["broken"], stats.encodings["cp1252"]) == (2, 1, 3)


def test_an_interrupt_of_the_group_leaves_it_to_its_user() -> None:
    chunks = made_apart(iter(PARTS * 10))
    first = next(chunks)
    (process,) = children()
    os.kill(int(process), signal.SIGINT)
    assert [first, *chunks] == PARTS * 10
    assert children() == []


def which_process(task: int) -> int:
    (maker,) = set(made_apart(str(os.getpid()).encode() for _ in range(20)))
    return int(maker) - os.getpid()


def test_a_worker_makes_them_itself() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(which_process, [0]) == [0]


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_nothing_is_forked_beside_their_threads(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert CAN_FORK()
    monkeypatch.setitem(sys.modules, package, None)
    assert not CAN_FORK()


@pytest.mark.parametrize("n_bytes", [PREFETCH_BYTES - 1, PREFETCH_BYTES])
def test_large_sources_are_read_by_a_process_and_small_ones_here(
    tmp_path: Path, n_bytes: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a " * (n_bytes // 2) + b"a" * (n_bytes % 2))
    told: list[int] = []
    source = Source(name="a.txt", path=path)
    chunks = read_source(source, PrepareConfig(), Stats(), told.append)
    assert next(chunks) == (b"a.txt", NAME)
    text, _ = next(chunks)
    assert len(children()) == (n_bytes == PREFETCH_BYTES)
    assert text + b"".join(rest for rest, _ in chunks) == path.read_bytes()
    assert sum(told) == n_bytes
    assert children() == []
