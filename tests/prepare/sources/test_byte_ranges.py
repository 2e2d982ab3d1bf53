"""A file of JSON lines as ranges of bytes: every line in one of them, and the data the same."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from prepare.sources import discover
from prepare.sources.discover import byte_ranges
from prepare.workers import executor
from tests.prepare.making import json_lines, prepare, snapshot


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    range_bytes=st.integers(1, 50),
    block_bytes=st.integers(1, 20),
    last_newline=st.booleans(),
)
@settings(deadline=None)
def test_byte_ranges_are_whole_lines_and_make_up_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    range_bytes: int,
    block_bytes: int,
    last_newline: bool,
) -> None:
    content = json_lines(["x" * length for length in lengths])
    content = content if last_newline else content[:-1]
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discover, "RANGE_BYTES", range_bytes)
        patch.setattr(discover, "BLOCK_BYTES", block_bytes)
        found = byte_ranges(path)
    if len(content) < 2 * range_bytes or b"\n" not in content:
        assert found == []
        return
    assert b"".join(content[start:end] for start, end in found) == content
    for start, end in found:
        assert start < end
        assert start == 0 or content[start - 1 : start] == b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", json_lines(["text"] * 99)),
        ("a.jsonl", gzip.compress(json_lines([f"text {i}" for i in range(999)]))),
        ("a.jsonl", b'{\n "text": "over several lines"\n}\n' * 99),
        ("a.jsonl", json.dumps([{"text": "in a list"}] * 99).encode()),
        ("a.jsonl", json_lines(["text"] * 99).decode().encode("utf-16")),
    ],
    ids=["other name", "packed", "pretty-printed", "a list", "UTF-16"],
)
def test_what_is_no_plain_file_of_json_lines_is_not_cut(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover, "RANGE_BYTES", 10)
    (tmp_path / name).write_bytes(content)
    assert byte_ranges(tmp_path / name) == []


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_data_are_the_same_however_the_file_is_cut(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        texts = [f"{name} {i} " * (i % 70) for i in range(300)]
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(texts))
    sources = [tmp_path / f"{name}.jsonl" for name in "abc"]
    whole = prepare(sources, tmp_path / "whole", tokenizer=tokenizer, vocab_size="300")
    for size in (100, 5_000):
        monkeypatch.setattr(discover, "RANGE_BYTES", size)
        monkeypatch.setattr(executor, "GROUP_BYTES", 10 * size)
        cut = prepare(sources, tmp_path / str(size), tokenizer=tokenizer, vocab_size="300")
        assert snapshot(cut.path) == snapshot(whole.path)


def test_a_bad_line_is_named_by_the_range_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = json_lines([f"text {i}" for i in range(10)])
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines + b"not JSON\n" + lines)
    monkeypatch.setattr(discover, "RANGE_BYTES", len(lines))
    with pytest.raises(DataError, match=rf"^from byte {len(lines)} of {path}, line 1: not a JSON"):
        prepare([path], tmp_path / "data")
