"""The files of a data folder, byte by byte, and how they come to be there: all or none."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from common.dataset import Split, open_data, verify_data
from common.errors import DataError
from common.tokenizer import CharTokenizer
from prepare.output.commit import Files, commit
from prepare.output.dataset_writer import MAX_DOCUMENT_TOKENS, TokenWriter
from prepare.output.shard import Shard
from tests.common.test_dataset import DOCUMENTS, TOKENIZER
from tests.prepare.making import snapshot, write_data


def add(writer: TokenWriter, ids: list[int], lengths: list[int]) -> None:
    writer.add_ids(np.array(ids, writer.dtype).tobytes())
    writer.add_lengths(np.array(lengths))


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<u4", 4)])
def test_the_files_are_these_bytes(dtype: str, code: int, tmp_path: Path) -> None:
    """By hand, from Megatron-LM's megatron/core/datasets/indexed_dataset.py."""
    write_data(tmp_path, DOCUMENTS, TOKENIZER, np.dtype(dtype))
    itemsize = int(dtype[-1])
    letter = {2: "H", 4: "I"}[itemsize]
    assert (tmp_path / "train.bin").read_bytes() == struct.pack(
        f"<8{letter}", 0, 1, 3, 3, 2, 2, 2, 3
    )
    assert (tmp_path / "train.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, 3, 4)
        + struct.pack("<3i", 3, 1, 4)
        + struct.pack("<3q", 0, 3 * itemsize, 4 * itemsize)
        + struct.pack("<4q", 0, 1, 2, 3)
    )


def test_documents_may_come_several_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    writer = TokenWriter(tmp_path / "1", "train", np.dtype("<u2"))
    add(writer, [0, 1, 3, 3], [3, 1])
    add(writer, [2, 2, 2, 3], [4])
    files = writer.finish()
    other = write_data(tmp_path / "2", DOCUMENTS, TOKENIZER).path
    assert files == {name: tmp_path / "1" / name for name in ("train.bin", "train.idx")}
    for name, path in files.items():
        assert path.read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("n_documents", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("block", [1, 2, 7])
def test_the_index_is_the_same_however_many_documents_are_in_memory(
    block: int, n_documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[0] * i + [3] for i in range(n_documents)]
    write_data(tmp_path / "1", {"train": rows, "val": []}, TOKENIZER)
    monkeypatch.setattr("prepare.output.dataset_writer.BLOCK_ROWS", block)
    write_data(tmp_path / "2", {"train": rows, "val": []}, TOKENIZER)
    lengths = list(range(1, n_documents + 1))
    pointers = [2 * sum(lengths[:i]) for i in range(n_documents)]
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, n_documents, n_documents + 1)
    expected += struct.pack(f"<{n_documents}i{n_documents}q", *lengths, *pointers)
    expected += struct.pack(f"<{n_documents + 1}q", *range(n_documents + 1))
    for name in ("1", "2"):
        assert (tmp_path / name / "train.idx").read_bytes() == expected
        assert open_data(tmp_path / name).document_bounds("train").tolist() == [
            sum(lengths[:i]) for i in range(n_documents + 1)
        ]


def test_a_long_document_may_come_in_blocks(tmp_path: Path) -> None:
    row = [*range(3), *range(3), 1, 3]
    documents: dict[Split, list[list[int]]] = {"train": [[1, 3], row, [2, 3]], "val": []}
    other = write_data(tmp_path / "whole", documents, TOKENIZER).path
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    add(writer, [1, 3], [2])
    for i in range(0, len(row), 3):
        writer.add_ids(np.array(row[i : i + 3], np.uint16).data)
    for ids in ([], [2], [3]):
        writer.add_ids(np.array(ids, np.uint16).data)
    writer.add_lengths(np.array([len(row), 2]))
    assert (writer.n_documents, writer.n_tokens) == (3, 12)
    writer.finish()
    for name in ("train.bin", "train.idx"):
        assert (tmp_path / name).read_bytes() == (other / name).read_bytes()


def test_a_document_too_long_for_the_index_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prepare.output.dataset_writer.MAX_DOCUMENT_TOKENS", 5)
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    add(writer, [0, 1, 2, 0, 3], [5])
    message = r"train\.bin: a document of 6 tokens, .* at most 5 of one\. Cut it: --separator"
    with pytest.raises(DataError, match=message):
        add(writer, [0, 1, 2, 0, 1, 3], [6])
    writer.close()


def test_the_longest_document_of_the_index_is_one_of_int32s() -> None:
    assert np.iinfo(np.int32).max == MAX_DOCUMENT_TOKENS


def test_ids_of_a_file_are_gone_on_with_as_if_they_had_been_added(tmp_path: Path) -> None:
    rows = [[0, 1, 3], [2, 3], [1, 1, 1, 3]]
    other = write_data(tmp_path / "whole", {"train": rows, "val": []}, TOKENIZER)
    shard = Shard(tmp_path, "first")
    shard.ids_path("train").write_bytes(np.array([*rows[0], *rows[1]], "<u2").tobytes())
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"), shard)
    writer.add_ids(np.array(rows[2], "<u2").tobytes())
    writer.add_lengths(np.array([3, 2, 4]))
    assert (writer.n_documents, writer.n_tokens) == (3, 9)
    for name, written in writer.finish().items():
        assert written.read_bytes() == (other.path / name).read_bytes()


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over another"])
@pytest.mark.parametrize("n_moved", range(12))
def test_a_commit_that_fails_leaves_what_was_there(
    n_moved: int, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its renames, as on a disk that has just become full."""
    out = tmp_path / "data"
    out.mkdir()
    (out / "vocab.json").write_text("somebody else's", encoding="utf-8")
    if existing:
        (out / "vocab.json").unlink()
        write_data(out, DOCUMENTS, CharTokenizer(("d", "e", "f")))
    before, n_left = snapshot(out), n_moved
    replace = os.replace

    def full(path: Path, target: Path) -> None:
        nonlocal n_left
        if out in (path.parent, target.parent) and n_left == 0:
            n_left = -1
            raise OSError(28, "No space left on device")
        n_left -= out in (path.parent, target.parent)
        replace(path, target)

    work = out / ".unfinished"
    work.mkdir()
    files: Files = {}
    for split in ("train", "val"):
        writer = TokenWriter(work, split, np.dtype("<u2"))
        add(writer, [1, 3], [2])
        files |= writer.finish()
    splits = {split: {"documents": 1, "tokens": 2} for split in ("train", "val")}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        try:
            commit(out, work, files, TOKENIZER, {"splits": splits})
        except OSError:
            kept = {n: raw for n, raw in snapshot(out).items() if not n.startswith(".unfinished/")}
            assert kept == before
        else:
            assert n_left >= 0  # it was done before
            verify_data(open_data(out))
            return
    commit(out, work, files, TOKENIZER, {"splits": splits})
    verify_data(open_data(out))


def test_a_file_that_is_missing_leaves_the_data_set_that_was_there(tmp_path: Path) -> None:
    out = write_data(tmp_path / "data", DOCUMENTS, TOKENIZER).path
    before = snapshot(out)
    (tmp_path / "work").mkdir()
    with pytest.raises(FileNotFoundError):
        commit(out, tmp_path / "work", {"train.bin": tmp_path / "gone"}, TOKENIZER, {})
    assert snapshot(out) == before


def test_a_vocabulary_that_is_no_data_sets_stays(tmp_path: Path) -> None:
    """As that of a model: a past fault deleted it."""
    (tmp_path / "vocab.tiktoken").write_text("a model's", encoding="utf-8")
    write_data(tmp_path, DOCUMENTS, TOKENIZER)
    assert (tmp_path / "vocab.tiktoken").read_text(encoding="utf-8") == "a model's"
