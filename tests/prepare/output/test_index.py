"""An index is there whole, or not at all; and of the ids that are there."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common.dataset import DataFolder, open_data
from common.errors import DataError
from common.suffix_array import SA_META_NAME, SA_NAME, SuffixArray
from prepare.output import index
from prepare.output.index import verify_index, write_index
from tests.prepare.making import prepare, write_data
from tests.prepare.readers.test_documents import written
from tests.processes import assert_one_sentence, run_python, start_python
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()


def random_data(folder: Path, lengths: list[int]) -> DataFolder:
    random = np.random.default_rng(len(lengths))
    rows = [[*random.integers(97, 101, n).tolist(), BYTES.eot_id] for n in lengths]
    return write_data(folder, {"train": rows, "val": []}, BYTES)


@pytest.mark.parametrize("part_bytes", [2, 300, 1 << 20])
def test_positions_are_in_the_order_of_the_bytes_behind_them(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "PART_BYTES", part_bytes)
    data = random_data(tmp_path / "data", [5, 1, 400, 0, 90, 60, 60])
    told: list[int] = []
    assert write_index(data, lambda name, size: told.append)
    raw = data.tokens("train").tobytes()
    order = np.fromfile(data.path / SA_NAME, "<u4")
    bounds = json.loads((data.path / SA_META_NAME).read_bytes())["bounds"]
    assert bounds[-1] == len(order) == sum(told) // 2
    assert set(bounds) <= {0, *data.document_bounds("train").tolist()}
    for first, end in pairwise(bounds):
        part = raw[2 * first : 2 * end]
        expected = sorted(range(end - first), key=lambda i: part[2 * i :])
        assert order[first:end].tolist() == expected
    assert len(bounds) == {2: 8, 300: 5, 1 << 20: 2}[part_bytes]


def test_the_command_does_nothing_twice_and_anew_for_other_ids(tmp_path: Path) -> None:
    source = written(tmp_path / "a.txt", b"some words " * 50)
    prepare([source], tmp_path / "data")
    index_again = ["-m", "prepare", "index", "data"]
    done = run_python(index_again, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "data/train.sa: 496 positions.\n"
    before = (tmp_path / "data" / SA_NAME).stat().st_mtime_ns
    done = run_python(index_again, tmp_path)
    assert done.stdout == "data/train.sa: there already, of these ids.\n"
    assert (tmp_path / "data" / SA_NAME).stat().st_mtime_ns == before
    written(source, b"other words " * 50)
    prepare([source], tmp_path / "data")
    assert run_python(index_again, tmp_path).stdout == "data/train.sa: 541 positions.\n"
    done = run_python(["-m", "prepare", "index", "gone"], tmp_path)
    assert done.returncode == 1
    assert "gone: no such folder" in done.stderr


def test_only_one_writes_an_index_at_a_time(tmp_path: Path) -> None:
    data = random_data(tmp_path / "data", [400])
    said = []

    def other(name: str, size: int) -> Callable[[int], object]:
        said.append(run_python(["-m", "prepare", "index", "data"], tmp_path))
        return lambda n_bytes: None

    assert write_index(data, other)
    assert_one_sentence(said[0], "data: another prepare index is at it. Wait for it.")
    verify_index(data)
    assert not write_index(data, other)


def test_an_index_with_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    data = random_data(tmp_path / "data", [400])
    verify_index(data)  # there is none
    write_index(data, lambda name, size: id)
    verify_index(data)
    path = data.path / SA_NAME
    raw = bytearray(path.read_bytes())
    raw[801] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.sa: its SHA-256 .* Delete it and make it again"):
        verify_index(data)
    path.unlink()
    assert write_index(data, lambda name, size: id)
    verify_index(data)


def test_positions_without_their_bounds_are_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ([*b"one person turns it"], [*b"others turn it more"])
    data = write_data(tmp_path / "data", {"train": [[*one, BYTES.eot_id]], "val": []}, BYTES)
    write_index(data, lambda name, size: id)
    write_data(tmp_path / "data", {"train": [[*other, BYTES.eot_id]], "val": []}, BYTES)

    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_index(open_data(data.path), lambda name, size: id)
    write_data(tmp_path / "data", {"train": [[*one, BYTES.eot_id]], "val": []}, BYTES)
    with pytest.raises(DataError, match="has no index"):
        SuffixArray(open_data(data.path))


def test_nothing_to_index_is_a_sentence(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {"train": [], "val": [[97, BYTES.eot_id]]}, BYTES)
    with pytest.raises(
        DataError, match=r"train\.bin: holds no tokens, so there is nothing to index\.$"
    ):
        write_index(data, lambda name, size: id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_it_sorts_it_leaves_nothing_under_its_name(
    number: signal.Signals, tmp_path: Path
) -> None:
    data = random_data(tmp_path / "data", [1_500_000, 1_500_000])
    with start_python(["-m", "prepare", "index", "data"], tmp_path) as process:
        sorting = wait_for_child(process)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode in (128 + number, -number)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{sorting}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{sorting}").exists()
    left = {SA_NAME, SA_META_NAME, SA_NAME + ".tmp"} & {path.name for path in data.path.iterdir()}
    assert left <= ({SA_NAME + ".tmp"} if number == signal.SIGKILL else set())
    assert write_index(data, lambda name, size: id)
    assert {path.name for path in data.path.iterdir()} >= {SA_NAME, SA_META_NAME}
    assert not (data.path / (SA_NAME + ".tmp")).exists()


def test_a_process_that_is_killed_at_its_sorting_is_a_sentence(tmp_path: Path) -> None:
    data = random_data(tmp_path / "data", [3_000_000])
    with start_python(["-m", "prepare", "index", "data"], tmp_path) as process:
        os.kill(wait_for_child(process), signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "The process that sorts ended with -9" in said
    assert not (data.path / SA_NAME).exists()


def wait_for_child(process: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii"):
            return int(found.split()[0])
        time.sleep(0.01)
    raise AssertionError("no process sorts")
