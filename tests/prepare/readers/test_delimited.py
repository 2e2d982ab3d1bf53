"""CSV and TSV, written by Python's csv and by pandas' rules: every row is a document."""

import csv
import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from tests.prepare.making import tar_of
from tests.prepare.readers.test_documents import read, written

TEXTS = [
    "plain",
    'with "quotes", commas; and\ttabs',
    "two\nlines\r\nand more",
    "\u00fcmlaut",
    "|",
    "'",
]
LONG = 'long, "' * 3_000


def table(texts: list[str], delimiter: str = ",", **options: Any) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, **options)
    writer.writerow(["id", "text", "n"])
    writer.writerows([i, text, i * i] for i, text in enumerate(texts))
    return file.getvalue()


def raw(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.TSV", "\t")])
def test_every_row_is_a_document(
    name: str, delimiter: str, line_end: str, encoding: str, tmp_path: Path
) -> None:
    text = table(TEXTS, delimiter, lineterminator=line_end)
    found, stats = read(written(tmp_path / name, text.encode(encoding)))
    assert found == raw(TEXTS)
    assert stats.warnings == []
    assert stats.n_bad_bytes == 0


def test_it_is_read_in_any_wrapping_and_beyond_a_block(tmp_path: Path) -> None:
    texts = [f"{i}: {LONG}" for i in range(60)]
    content = table(texts).encode()
    written(tmp_path / "a.csv.gz", gzip.compress(content))
    written(tmp_path / "b.tar", tar_of({"x/a.csv": content}))
    assert read(tmp_path)[0] == raw(texts) * 2


def test_without_the_column_the_columns_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", table(TEXTS, ";").encode())
    message = rf"^{path}: no column 'body'; there are 'id', 'text', 'n'\. .*--text-key"
    with pytest.raises(DataError, match=message):
        read(path, text_key="body")
    assert read(path, text_key="n")[0] == [b"0", b"1", b"4", b"9", b"16", b"25"]
    for content in (b"", b"\n \n", b"id,text\n"):
        assert read(written(path, content))[0] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,some text, and more", "3 fields, but the first line names 2"),
        ("1", "1 fields, but the first line names 2"),
        ('1,"quotes" inside', "not CSV (',' expected after '\"')"),
    ],
)
def test_a_bad_row_is_an_error_that_names_its_line_or_costs_one_document(
    line: str, message: str, tmp_path: Path
) -> None:
    content = f'id,text\n0,"one\none"\n{line}\n\n2,two,,\n'
    path = written(tmp_path / "a.csv", content.encode())
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message.startswith(f"{path}, line 4: {message}")
    found, stats = read(path, on_error="skip")
    assert found == [b"one\none", b"two"]
    assert stats.skipped == [{"name": f"{path}, line 4", "reason": "not CSV"}]


def test_a_table_that_is_cut_inside_of_quotes_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b'id,text\n1,one\n2,"cut of')
    with pytest.raises(DataError, match=r"a\.csv, line 3: not CSV \(unexpected end of data\)"):
        read(path)


@pytest.mark.parametrize(("on_bad_bytes", "n"), [("replace", 3), ("skip", 2)])
def test_bytes_that_are_not_utf8_cost_one_document_at_most(
    on_bad_bytes: str, n: int, tmp_path: Path
) -> None:
    content = "id,text\n1,caf\u00e9 th\u00e9\n".encode() + b"2,caf\xe9\n3,three\n"
    found, stats = read(written(tmp_path / "a.csv", content), on_bad_bytes=on_bad_bytes)
    assert len(found) == n
    assert found[-1] == b"three"
    assert stats.n_bad_bytes == 1
    with pytest.raises(DataError, match=r"a\.csv, byte 26: 0xe9 is not UTF-8"):
        read(tmp_path / "a.csv", on_bad_bytes="fail")


def test_memory_does_not_grow_with_the_length_of_a_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", table(["x" * 985] * 20_000).encode())
    tracemalloc.start()
    try:
        with path.open("rb") as stream:
            from prepare.chunks import Stats
            from prepare.config import PrepareConfig
            from prepare.readers.delimited import delimited_documents

            chunks = delimited_documents(path.name, stream, PrepareConfig(), Stats())
            assert sum(len(text) for text, _ in chunks) == 20_000 * 985
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
