"""Each document's name and number, held against those that its own text says."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from common.dataset import NAMES_NAME, SPLITS, DataFolder, Split, open_data
from common.files import write_json
from prepare import chunks
from prepare.output import dataset_writer, names
from prepare.sources import source as reading
from prepare.workers import executor
from tests.prepare.making import prepare, tar_of
from tests.prepare.readers.test_documents import written, zip_of
from tests.processes import run_python

SEPARATOR = "\n%%\n"
# What stands between the records of JSON lines, and is none.
NONE = {
    0: b"\n\n",
    3: b'{"no": 1}\n',
    5: b"not JSON\n \n",
    6: b'{"text": " "}\n',
    9: b'{"text": "\xff"}\n',
}
SKIP: dict[str, Any] = {"on_error": "skip", "on_bad_bytes": "skip", "encoding": "utf-8"}


def text_of(name: str, number: int | None) -> str:
    """Return a text any part of which says where the whole stood."""
    return f"<{name}|{number}>" * 12


def lines_of(name: str, n_documents: int = 20) -> bytes:
    content = b""
    for i in range(n_documents):
        content += NONE.get(i, b"")
        number = content.count(b"\n") + 1
        content += json.dumps({"text": text_of(name, number)}).encode() + b"\n"
    return content + b"\n"


def parts_of(name: str) -> bytes:
    texts = [text_of(name, 1), "", text_of(name, 3), " ", text_of(name, 5)]
    return SEPARATOR.join(texts).encode()


def table_of(name: str) -> bytes:
    file = io.StringIO(newline="")
    rows: list[list[Any]] = [["id", "text"], *([i, text_of(name, i)] for i in range(1, 8))]
    csv.writer(file).writerows(rows)
    return file.getvalue().encode()


def parquet_of(name: str) -> bytes:
    raw = io.BytesIO()
    texts = [text_of(name, i) for i in range(1, 30)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), raw)
    return raw.getvalue()


def write_sources(folder: Path) -> None:
    def alone(name: str) -> bytes:
        return text_of(name, None).encode()

    for name in ("a.txt", "sub/line\nfeed.txt", "sub/\u00fc.txt"):
        written(folder / name, alone(f"src/{name}".replace("\n", "\\n")))
    written(folder / "empty.txt", b" \n")
    written(folder / "lines.jsonl", lines_of("src/lines.jsonl", 60))
    written(folder / "one.jsonl", lines_of("src/one.jsonl", 1))
    written(folder / "parts.txt", parts_of("src/parts.txt"))
    written(folder / "table.csv", table_of("src/table.csv"))
    written(folder / "table.parquet", parquet_of("src/table.parquet"))
    values = [{"text": text_of("src/values.json", i)} for i in (1, 2, 3)]
    written(folder / "values.json", json.dumps(values, indent=1).encode())
    within = "src/z.tar"  # what gzip holds is called as it, without .gz
    inner = {
        "d/lines.jsonl.zst": zstandard.compress(lines_of(f"{within}/in.tar/d/lines.jsonl")),
        "d/a.txt": alone(f"{within}/in.tar/d/a.txt"),
    }
    pack = {
        "p.txt": parts_of(f"{within}/pack.zip/p.txt"),
        "e.txt": b"",
        "q": alone(f"{within}/pack.zip/q"),
    }
    outer = {
        "in.tar": tar_of(inner),
        "b.txt": alone(f"{within}/b.txt"),
        "pack.zip": zip_of(pack),
    }
    written(folder / "z.tar.gz", gzip.compress(tar_of(outer)))


def named_and_said(data: DataFolder) -> list[tuple[tuple[str, int | None], tuple[str, int | None]]]:
    """Return of each document what the data set calls it, and what its text does."""
    tokenizer, pairs = data.tokenizer(), []
    for split in SPLITS:
        bounds = data.document_bounds(split)
        for i in range(len(bounds) - 1):
            text = tokenizer.decode_bytes(data.tokens(split)[bounds[i] : bounds[i + 1]]).decode()
            found = re.search(r"<([^<|]*)\|(\d+|None)>", text)
            assert found, text
            number = None if found[2] == "None" else int(found[2])
            pairs.append((data.document_name(split, i), (found[1], number)))
    return pairs


@pytest.mark.parametrize("rule", ["hash", "tail"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_each_document_has_the_name_and_the_number_that_its_text_says(
    rule: str, is_cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path / "src")
    if is_cut:  # tasks of a file, ranges of a few lines, documents of several chunks
        monkeypatch.setattr(executor, "GROUP_BYTES", 1)
        monkeypatch.setattr(reading, "RANGE_BYTES", 1_500)
        monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 200)
        monkeypatch.setattr(dataset_writer, "BLOCK_ROWS", 3)
        monkeypatch.setattr(names, "HELD_RUNS", 2)
    data = prepare([Path("src")], Path("data"), separator=r"\n%%\n", split_rule=rule, **SKIP)
    pairs = named_and_said(data)
    assert [named for named, _ in pairs] == [said for _, said in pairs]
    n_documents = 3 + 60 + 1 + 3 + 7 + 29 + 3 + (20 + 1) + 1 + (3 + 1)
    assert data.meta["n_documents"] == n_documents
    assert len({said for _, said in pairs}) == n_documents
    lines = (Path("data") / NAMES_NAME).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines))


def test_of_equal_documents_the_first_gives_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path / "src")
    for name, copy in (("a.txt", "zz.txt"), ("lines.jsonl", "zz.jsonl")):
        written(tmp_path / "src" / copy, (tmp_path / "src" / name).read_bytes())
    data = prepare([Path("src")], Path("data"), dedup="exact", separator=r"\n%%\n", **SKIP)
    pairs = named_and_said(data)
    assert [named for named, _ in pairs] == [said for _, said in pairs]
    assert data.meta["n_duplicates"] == 61


def test_conversations_are_named_by_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = written(tmp_path / "base.txt", "".join(map(chr, range(32, 127))).encode() * 9)
    prepare([base], Path("base"))
    content = b"\n" + b"".join(
        json.dumps({"question": f"<chats.jsonl|{i}>", "answer": f"{i}"}).encode()
        + (b"\n\n" if i % 7 == 0 else b"\n")
        for i in [*range(2, 8), *range(9, 15)]
    )
    written(tmp_path / "chats.jsonl", content)
    done = run_python(
        ["-m", "prepare", "chats", "chats.jsonl", "--tokenizer", "base", "--out", "data"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    pairs = named_and_said(open_data(tmp_path / "data"))
    assert [named for named, _ in pairs] == [said for _, said in pairs]
    assert len(pairs) == 12


def test_an_older_data_set_without_names_has_numbers(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"some text " * 9)
    data = prepare([tmp_path / "a.txt"], tmp_path / "data", split_rule="hash")
    whole = data.sha256
    meta = data.meta
    for name in [name for name in meta["files"] if "names" in name]:
        (data.path / name).unlink()
        del meta["files"][name]
    del meta["meta_sha256"]
    write_json(data.path / "meta.json", meta)
    older = open_data(data.path)
    split: Split = "train" if older.n_tokens("train") else "val"
    assert older.document_name(split, 0) == ("data, document 1", None)
    assert older.sha256 == whole  # so a run on either goes on with the other
