import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.dataset import (
    SPLITS,
    DataFolder,
    Split,
    meta_sha256,
    open_data,
    token_dtype,
    verify_data,
)
from common.errors import DataError
from common.tokenizer import CharTokenizer
from tests.prepare.making import write_data

TOKENIZER = CharTokenizer(("a", "b", "c"))  # so the end-of-text id is 3
DOCUMENTS: dict[Split, list[list[int]]] = {"train": [[0, 1, 3], [3], [2, 2, 2, 3]], "val": [[1, 3]]}


def write(folder: Path, documents: dict[Split, list[list[int]]], **changes: Any) -> Path:
    """Write a data folder of these ids; ``changes`` go into meta.json."""
    return write_data(folder, documents, TOKENIZER, **changes).path


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")]
)
def test_two_bytes_hold_65536_ids_and_four_the_rest(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


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
    meta = json.loads((folder / "meta.json").read_bytes()) | changes
    meta["meta_sha256"] = meta_sha256(meta)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
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
