"""Chunks made by another process: the same, with its errors, and it is gone at the end."""

import io
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import DataError
from prepare.ahead import GATHER_BYTES, ahead, forbid
from prepare.sources import CountedFile

PARTS = [bytes([i]) * (GATHER_BYTES // 3 + i) for i in range(40)]


class Progress:
    """What a file tells, noted."""

    def __init__(self) -> None:
        self.n_read = 0
        self.muted = False

    def mute(self) -> None:
        self.muted = True

    def catch_up(self, n_read: int) -> None:
        self.n_read = n_read


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


def test_the_chunks_are_the_same() -> None:
    assert b"".join(ahead(iter(PARTS), Progress())) == b"".join(PARTS)
    assert list(ahead(iter([]), Progress())) == []
    assert children() == []


def test_they_are_made_in_another_process_when_they_are_many() -> None:
    def pids() -> Iterator[bytes]:
        for _ in range(20):
            yield str(os.getpid()).encode().ljust(GATHER_BYTES)

    found = {int(part) for part in ahead(pids(), Progress())}
    assert os.getpid() in found
    assert len(found) == 2


def test_small_content_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    assert b"".join(ahead(iter([b"a", b"b", b"c"]), Progress())) == b"abc"


def test_it_makes_only_so_much_ahead(tmp_path: Path) -> None:
    """What it has made waits in the pipe, which is short, and in its hands."""

    def make() -> Iterator[bytes]:
        for i in range(40):
            (tmp_path / str(i)).touch()
            yield bytes(GATHER_BYTES)

    chunks = ahead(make(), Progress())
    for n_used in range(1, 6):
        next(chunks)
        time.sleep(0.02)
        assert len(list(tmp_path.iterdir())) <= n_used + 3
    chunks.close()
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.parametrize("n_before", [0, 1, 20])
def test_its_error_is_raised_here_behind_what_came_before_it(n_before: int) -> None:
    def make() -> Iterator[bytes]:
        yield from PARTS[:n_before]
        raise DataError("damaged at byte 9")

    chunks = ahead(make(), Progress())
    found: list[bytes] = []
    with pytest.raises(DataError, match=r"^damaged at byte 9$"):
        found.extend(iter(chunks.__next__, None))
    assert b"".join(found) == b"".join(PARTS[:n_before])
    assert children() == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a mistake")])
def test_other_errors_come_through_too(error: Exception) -> None:
    def make() -> Iterator[bytes]:
        yield from PARTS
        raise error

    with pytest.raises((OSError, RuntimeError), match=r"Input/output error|a mistake"):
        deque(ahead(make(), Progress()), maxlen=0)


@pytest.mark.parametrize("n_used", [1, 2, 5])
def test_it_ends_when_its_user_stops_early(n_used: int) -> None:
    chunks = ahead(iter(PARTS), Progress())
    for _ in range(n_used):
        next(chunks)
    assert len(children()) == (n_used > 1)
    chunks.close()
    assert children() == []


def test_killed_it_is_a_sentence() -> None:
    chunks = ahead(iter(PARTS * 10), Progress())
    next(chunks), next(chunks)
    (process,) = children()
    os.kill(int(process), signal.SIGKILL)
    with pytest.raises(DataError, match="was killed, or there was no memory left"):
        deque(chunks, maxlen=0)
    assert children() == []


def test_every_byte_that_it_reads_is_told_here_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 * GATHER_BYTES))
    told: list[int] = []
    with CountedFile(path, told.append) as file, io.BufferedReader(file) as stream:
        chunks = iter(lambda: stream.read(GATHER_BYTES), b"")
        assert sum(map(len, ahead(chunks, file))) == 10 * GATHER_BYTES
        assert sum(told) == file.n_read == 10 * GATHER_BYTES
        assert 0 not in told[:-1]


def test_an_interrupt_of_the_group_leaves_it_to_its_user() -> None:
    chunks = ahead(iter(PARTS * 10), Progress())
    next(chunks), next(chunks)
    (process,) = children()
    os.kill(int(process), signal.SIGINT)
    assert b"".join([*PARTS[:0], *chunks]) != b""
    assert children() == []


def test_a_worker_makes_them_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prepare.ahead._forbidden", False)
    forbid()
    monkeypatch.delattr(os, "fork")
    assert b"".join(ahead(iter(PARTS), Progress())) == b"".join(PARTS)
