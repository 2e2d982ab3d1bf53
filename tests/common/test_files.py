import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.files import atomic_write, sha256_of, whole_folder, write_json, write_text
from tests.processes import start_python


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_and_keeps_what_it_says(tmp_path: Path) -> None:
    """Past bug: numpy's, "9 requested and 0 written", became "[Errno None] None"."""
    for error, said in (
        (OSError("9 requested and 0 written"), "9 requested and 0 written"),
        (OSError(28, "No space left"), f"[Errno 28] No space left: '{tmp_path / 'a'}'"),
    ):
        with pytest.raises(OSError, match=f"^{re.escape(said)}$"), atomic_write(tmp_path / "a"):
            raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_stops_the_writing_leaves_the_old_file(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_process_leaves_the_old_file_and_the_next_one_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "from pathlib import Path\n"
        "from common.files import atomic_write\n"
        "with atomic_write(Path('a')) as file:\n"
        "    file.write(b'new' * 100_000)\n"
        "    print('half done', flush=True)\n"
        "    input()\n"
    )
    with start_python(["-c", code], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half done\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"newer")
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["a"]


def test_text_is_written_as_utf8_with_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ä\r\n\u2028\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\r\n\xe2\x80\xa8\n"


def test_json_is_readable_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"name": "ä", "n": [1]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n "name": "ä",\n "n": [\n  1\n ]\n}\n'


@pytest.mark.parametrize("n_bytes", [0, 1, 1 << 20, (1 << 21) + 1])
def test_the_hash_is_that_of_the_whole_file(n_bytes: int, tmp_path: Path) -> None:
    content = os.urandom(n_bytes)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_bytes_of_names_that_are_not_utf_8_come_back_from_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff\xe4")
    write_json(tmp_path / "a", {"path": name})
    assert json.loads((tmp_path / "a").read_bytes()) == {"path": name}


def test_a_pipe_or_a_folder_of_that_name_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileExistsError, match="it is there, and no file"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_what_a_library_writes_into_a_folder_is_flushed_and_others_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("common.files.FULL_SYNC", None)
    monkeypatch.setattr(os, "fsync", note)
    with whole_folder(tmp_path / "y") as folder:
        (folder / "z").write_text("z", "utf-8")
    with whole_folder(tmp_path / "one", only="z") as folder:
        (folder / "z").write_text("z", "utf-8")
        (folder / "z").chmod(0o600)  # as safetensors' are
    for path in (tmp_path / "y", tmp_path / "y" / "z", tmp_path / "one"):
        assert path.stat().st_ino in flushed
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "y" / "z").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "y"]


def test_a_folder_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "y"
    left = tmp_path / ".y.unfinished"  # by a process that was killed
    (left / "b").mkdir(parents=True)
    with whole_folder(path) as folder:
        assert folder == left
        assert not list(folder.iterdir())
        (folder / "z").write_text("z", "utf-8")
        # past bug: it deleted what the first had written, which was called whole all the same
        with (
            pytest.raises(CheckpointError, match="y: another process is writing it"),
            whole_folder(path),
        ):
            pass
    assert [each.name for each in tmp_path.rglob("*")] == ["y", "z"]
