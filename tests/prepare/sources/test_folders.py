"""What is left out of folders and archives, what cannot be read there, and clones of data sets."""

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.dataset import open_data
from common.errors import DataError
from prepare.sources.discover import find_sources
from tests.prepare.making import json_lines, prepare, snapshot, tar_of, texts_of
from tests.processes import assert_one_sentence, run_python

TEXT = ["-m", "prepare", "text", "--tokenizer", "char", "--val-fraction", "0"]


def written(path: Path, content: bytes = b"some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_vault_gives_the_same_bytes_as_a_folder_a_tgz_and_a_zip(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    hidden = [".obsidian/app.json", ".git/HEAD", ".trash/old.md", "notes/.draft.md", "._a.md"]
    hidden += ["__MACOSX/._a.md", "__MACOSX/notes/b.md", "notes/.DS_Store"]
    for name in ["a.md", "notes/b.md", "notes/c...md", *hidden]:
        written(vault / name, f"text of {name}".encode())
    with tarfile.open(tmp_path / "vault.tgz", "w:gz") as tar:
        tar.add(vault, ".")
    with zipfile.ZipFile(tmp_path / "vault.zip", "w") as archive:
        for path in sorted(vault.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    expected = [b"text of a.md", b"text of notes/b.md", b"text of notes/c...md"]
    made = []
    for name in ("vault", "vault.tgz", "vault.zip"):
        data = prepare([tmp_path / name], tmp_path / f"from {name}", val_fraction=0)
        assert texts_of(data, "train") == expected
        assert data.meta["skipped"] == []
        made.append({name: raw for name, raw in snapshot(data.path).items() if "meta" not in name})
        names = [data.document_name("train", i)[0].rpartition("/")[2] for i in range(3)]
        assert names == ["a.md", "b.md", "c...md"]
        for name in ("train.names", "val.names", "names.txt"):
            del made[-1][name]
    assert made[0] == made[1] == made[2]


def test_what_a_mac_puts_beside_files_is_left_out_though_it_is_binary(tmp_path: Path) -> None:
    members = {"a.txt": b"one", "._a.txt": b"\0\5\x16\7" * 40, "x/._b.parquet": b"\0\5" * 60}
    written(tmp_path / "a.tar", tar_of({**members, "__MACOSX/._x": b"\0" * 99, "./b.txt": b"two"}))
    data = prepare([tmp_path / "a.tar"], tmp_path / "data", val_fraction=0)
    assert texts_of(data, "train") == [b"one", b"two"]
    assert data.meta["reasons"] == {}


def test_a_link_to_a_blob_that_is_missing_is_an_error_or_listed(tmp_path: Path) -> None:
    """A snapshot of huggingface_hub's cache, of which a download broke off."""
    for i in range(2):
        link = tmp_path / "hub" / "snapshots" / "abc" / "data" / f"{i}.jsonl"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../blobs/{i}")
    written(tmp_path / "hub" / "blobs" / "0", json_lines(["one", "two"]))
    folder = "hub/snapshots/abc"
    said = f"{folder}/data/1.jsonl: a link to what is not there (No such file or directory)"
    assert_one_sentence(run_python([*TEXT, folder], tmp_path), said, "--on-error skip")
    assert snapshot(tmp_path / "data") == {}
    process = run_python([*TEXT, folder, "--on-error", "skip"], tmp_path)
    assert process.returncode == 3, process.stderr
    assert f"1 skipped, a link to what is not there: {folder}/data/1.jsonl." in process.stdout
    data = open_data(tmp_path / "data")
    assert texts_of(data, "train") == [b"one", b"two"]
    written(tmp_path / "hub" / "blobs" / "1", json_lines(["three"]))
    process = run_python([*TEXT, folder, "--on-error", "skip"], tmp_path)
    assert "data: made again: 1 of the sources changed" in process.stderr
    assert texts_of(open_data(tmp_path / "data"), "train") == [b"one", b"two", b"three"]


def test_links_without_an_end_are_said_too(tmp_path: Path) -> None:
    written(tmp_path / "a.txt")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "a loop").symlink_to(tmp_path)
    found = {source.path.name: source.error for source in find_sources([tmp_path])}
    assert found.keys() == {"a.txt", "itself"}
    assert "itself: a link to what is not there" in found["itself"]


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder that a person without rights reads, which this process then is, also for root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_closed_folder_is_an_error_or_listed(mode: int, nobodys_folder: Path) -> None:
    for name in ["a/1.txt", "b/2.txt", "c/3.txt"]:
        written(nobodys_folder / "in" / name, name.encode())
    closed = nobodys_folder / "in" / "b"
    closed.chmod(mode)
    user = os.geteuid()
    os.seteuid(user or 65_534)  # nobody
    try:
        said = f"^{closed}: the folder cannot|^{closed}/2.txt: cannot"
        with pytest.raises(DataError, match=rf"({said}).* be read \(Permission denied\)"):
            prepare([nobodys_folder / "in"], nobodys_folder / "data", val_fraction=0)
        data = prepare(
            [nobodys_folder / "in"], nobodys_folder / "data", val_fraction=0, on_error="skip"
        )
    finally:
        os.seteuid(user)
    assert texts_of(data, "train") == [b"a/1.txt", b"c/3.txt"]

    [skipped] = data.meta["skipped"]
    assert skipped["name"] in (str(closed), f"{closed}/2.txt")


CARD = b"---\nlicense: mit\ndataset_info:\n  features:\n---\n# A data set\n"


@pytest.mark.parametrize(
    ("files", "is_clone"),
    [
        ({"README.md": CARD, "data/train-00000-of-00001.parquet": b""}, True),
        ({"README.md": CARD, "rows.jsonl": b""}, True),
        ({"README.md": b"text", "train.jsonl": b"", "test.jsonl": b""}, True),
        ({"train-0-of-1.parquet": b"", "validation-0-of-1.parquet": b""}, True),
        ({"README.md": CARD, "notes.txt": b""}, False),
        ({"README.md": b"---\ntags: a note\n---\nlicense: x", "rows.csv": b""}, False),
        ({"README.md": b"text", "train.csv": b""}, False),
        ({"training.jsonl": b"", "tests.json": b"", "testimony.txt": b"", "train.md": b""}, False),
    ],
)
def test_of_a_clone_of_a_data_set_the_option_for_it_is_named(
    files: dict[str, bytes], is_clone: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in files.items():
        written(tmp_path / name, content)
    find_sources([tmp_path])
    assert (f"--dataset {tmp_path} reads one split" in caplog.text) == is_clone
