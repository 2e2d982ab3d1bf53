import hashlib
import json
import struct
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.dataset import (
    MAX_DOCUMENT_TOKENS,
    SPLITS,
    DataFolder,
    TokenWriter,
    commit,
    open_data,
    token_dtype,
    verify_data,
)
from common.errors import DataError
from common.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer(("a", "b", "c"))  # so the end-of-text id is 3
DOCUMENTS = {"train": [[0, 1, 3], [3], [2, 2, 2, 3]], "val": [[1, 3]]}


def write(
    folder: Path, documents: dict[str, list[list[int]]], dtype: str = "<u2", **changes: Any
) -> Path:
    """Write a data folder of these ids; ``changes`` go into meta.json."""
    folder.mkdir(exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    splits = {}
    for split in SPLITS:
        writer = TokenWriter(folder, split, np.dtype(dtype))
        for row in documents[split]:
            writer.add(np.array(row, np.uint32), np.array([len(row)]))
        files |= writer.finish()
        n_tokens = sum(map(len, documents[split]))
        splits[split] = {"documents": len(documents[split]), "tokens": n_tokens}
    commit(folder, files, TOKENIZER, {"splits": splits} | changes)
    return folder


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<u4", 4)])
def test_the_files_are_these_bytes(dtype: str, code: int, tmp_path: Path) -> None:
    """By hand, from Megatron-LM's megatron/core/datasets/indexed_dataset.py."""
    write(tmp_path, DOCUMENTS, dtype)
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
    writer.add(np.array([0, 1, 3, 3], np.uint32), np.array([3, 1]))
    writer.add(np.array([2, 2, 2, 3], np.uint32), np.array([4]))
    files = writer.finish()
    other = write(tmp_path / "2", DOCUMENTS)
    for name in ("train.bin", "train.idx"):
        raw = (tmp_path / "1" / f"{name}.tmp").read_bytes()
        assert raw == (other / name).read_bytes()
        assert files[name] == {"size_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


@pytest.mark.parametrize("n_documents", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("block", [1, 2, 7])
def test_the_index_is_the_same_however_many_documents_are_in_memory(
    block: int, n_documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[0] * i + [3] for i in range(n_documents)]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    write(tmp_path / "1", {"train": rows, "val": []})
    monkeypatch.setattr("common.dataset.IDX_BLOCK", block)
    write(tmp_path / "2", {"train": rows, "val": []})
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
    other = write(tmp_path / "whole", {"train": [[1, 3], row, [2, 3]], "val": []})
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    writer.add(np.array([1, 3], np.uint32), np.array([2]))
    for i in range(0, len(row), 3):
        writer.add_ids(np.array(row[i : i + 3], np.uint16))
    for ids in ([], [2], [3]):
        writer.add_ids(np.array(ids, np.uint16))
    writer.add_lengths(np.array([len(row), 2]))
    assert (writer.n_documents, writer.n_tokens) == (3, 12)
    writer.finish()
    for name in ("train.bin", "train.idx"):
        assert (tmp_path / f"{name}.tmp").read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_document_too_long_for_the_index_is_a_sentence(
    in_blocks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.dataset.MAX_DOCUMENT_TOKENS", 5)
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    writer.add(np.array([0, 1, 2, 0, 3]), np.array([5]))
    row = np.array([0, 1, 2, 0, 1, 3])
    message = r"train\.bin: a document of 6 tokens, .* at most 5 of one\. Cut it: --separator"
    add = partial(writer.add_lengths, np.array([6]))
    if not in_blocks:
        add = partial(writer.add, row, np.array([6]))
    with pytest.raises(DataError, match=message):
        add()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_longest_document_of_the_index_is_one_of_int32s() -> None:
    assert np.iinfo(np.int32).max == MAX_DOCUMENT_TOKENS


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")]
)
def test_two_bytes_hold_65536_ids_and_four_the_rest(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_an_id_too_large_is_never_wrapped(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    with pytest.raises(AssertionError):
        writer.add(np.array([65_536], np.uint32), np.array([1]))
    writer.discard()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, DOCUMENTS))
    for split in SPLITS:
        ids, bounds = data.tokens(split), data.document_bounds(split)
        rows = [ids[a:b].tolist() for a, b in pairwise(bounds)]
        assert rows == DOCUMENTS[split]
        assert data.n_tokens(split) == sum(map(len, DOCUMENTS[split]))
    assert data.tokenizer() == TOKENIZER
    verify_data(data)


def test_an_empty_split_is_read(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, DOCUMENTS | {"val": []}))
    assert len(data.tokens("val")) == 0
    assert data.document_bounds("val").tolist() == [0]
    verify_data(data)


def test_nothing_has_its_name_before_all_is_finished(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    writer.add(np.array([3], np.uint32), np.array([1]))
    assert {path.name for path in tmp_path.iterdir()} == {"train.bin.tmp", "train.idx.tmp"}
    writer.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"train.bin.tmp", "train.idx.tmp"}
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_without_all_its_files_is_none(tmp_path: Path) -> None:
    """As where the machine stopped between two renames: the new meta.json is not there yet."""
    write(tmp_path, DOCUMENTS)
    (tmp_path / "train.bin.tmp").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        commit(tmp_path, {"train.bin": {}, "no such file": {}}, TOKENIZER, {})
    with pytest.raises(DataError, match=r"meta\.json: missing"):
        open_data(tmp_path)


def test_the_data_sets_hash_is_that_of_its_content(tmp_path: Path) -> None:
    one = open_data(write(tmp_path / "1", DOCUMENTS)).sha256
    assert open_data(write(tmp_path / "2", DOCUMENTS, note="another meta.json")).sha256 == one
    assert open_data(write(tmp_path / "3", DOCUMENTS | {"val": [[2, 3]]})).sha256 != one


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.idx", "val.idx", "vocab.json"])
def test_a_file_of_another_length_is_an_error_that_says_both(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, DOCUMENTS) / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=f"^{path}: {size + 1} bytes, .* promises {size} bytes"):
        open_data(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: missing, .* promises {size} bytes"):
        open_data(tmp_path)


def test_verify_finds_every_flipped_bit(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, DOCUMENTS))
    for name in data.meta["files"]:
        whole = (tmp_path / name).read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match=f"^{tmp_path / name}: SHA-256 is"):
                verify_data(data)
        (tmp_path / name).write_bytes(whole)
    verify_data(data)


def lie(folder: Path, **changes: Any) -> DataFolder:
    """Change meta.json so that hashes and sizes still fit."""
    meta = json.loads((folder / "meta.json").read_bytes())
    (folder / "meta.json").write_text(json.dumps(meta | changes), encoding="utf-8")
    return open_data(folder)


def test_verify_counts_again(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS | {"train": [[0, 1, 3], [2, 3, 2, 3]]})
    with pytest.raises(DataError, match=r"3 end-of-text ids, but meta\.json promises 2"):
        verify_data(open_data(tmp_path))
    splits = {"train": {"documents": 2, "tokens": 9}, "val": {"documents": 1, "tokens": 2}}
    with pytest.raises(DataError, match=r"7 tokens in the \.bin, but meta.json promises 9"):
        verify_data(lie(tmp_path, splits=splits))
    splits["train"] = {"documents": 3, "tokens": 7}
    with pytest.raises(DataError, match=r"train\.idx: begins with .* of 3 documents"):
        verify_data(lie(tmp_path, splits=splits))


def test_verify_finds_an_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, DOCUMENTS | {"val": [[8, 3]]}))
    with pytest.raises(DataError, match=r"val\.bin: holds id 8, but the vocabulary ends at 7"):
        verify_data(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as a data set's"),
        ("[]", "cannot be read as a data set's"),
        ("{}", "cannot be read as a data set's"),
        ('{"format": 2}', "format 2, but this version reads 1"),
        ('{"format": 1}', "lacks files, splits, tokenizer"),
    ],
)
def test_a_meta_json_of_another_kind_is_an_error(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "meta.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"^{tmp_path}/meta.json: {message}"):
        open_data(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_ids_come_from_files_as_if_they_had_been_added(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is written on under another name, and keeps what was promised of it."""
    if not links:
        monkeypatch.setattr("os.link", refuse_to_link)
    monkeypatch.setattr("common.dataset.COPY_BYTES", 3)
    rows = [[0, 1, 3], [2, 3], [1, 1, 1, 3]]
    other = write(tmp_path / "whole", {"train": rows, "val": []})
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    first.write_bytes(np.array([*rows[0], *rows[1], 7, 7], "<u2").tobytes())  # and more behind it
    second.write_bytes(np.array(rows[2], "<u2").tobytes())
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    writer.add_file(first, 10)
    writer.add_file(second, 8)
    writer.add_lengths(np.array([3, 2, 4]))
    files = writer.finish()
    assert files == {n: open_data(other).meta["files"][n] for n in ("train.bin", "train.idx")}
    assert (tmp_path / "train.bin.tmp").read_bytes() == (other / "train.bin").read_bytes()
    assert first.read_bytes()[:10] == np.array([*rows[0], *rows[1]], "<u2").tobytes()


def test_many_files_come_in_their_order_between_what_is_added(tmp_path: Path) -> None:
    """Threads copy them, a large one longer than the small ones behind it."""
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    expected = np.zeros(0, np.uint16)
    for number, n_tokens in enumerate([3, 2_000_000, 1, 0, 700_000, 5, 9]):
        ids = np.random.default_rng(number).integers(0, 60_000, n_tokens, np.uint16)
        path = tmp_path / f"{number}.bin"
        path.write_bytes(ids.tobytes())
        writer.add_file(path, ids.nbytes)
        writer.add_ids(ids[:4])
        expected = np.concatenate([expected, ids, ids[:4]])
    writer.add_lengths(np.array([len(expected)]))
    digest = writer.finish()["train.bin"]["sha256"]
    content = (tmp_path / "train.bin.tmp").read_bytes()
    assert content == expected.tobytes()
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_copy_that_fails_is_an_error_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "ids.bin").write_bytes(bytes(10))
    monkeypatch.setattr("common.dataset.write_all", full)
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"))
    writer.add_file(tmp_path / "ids.bin", 10)  # under another name
    writer.add_file(tmp_path / "ids.bin", 10)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    writer.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["ids.bin"]


def refuse_to_link(source: Path, target: Path) -> None:
    raise OSError(f"no link from {source} to {target} here")
