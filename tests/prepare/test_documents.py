import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from prepare.archives import UnreadableError
from prepare.config import PrepareConfig
from prepare.documents import Findings, read_documents
from prepare.sources import find_sources
from tests.prepare.making import json_lines, tar_of


def read(path: Path, **settings: Any) -> tuple[list[bytes], Findings]:
    findings = Findings()
    config = PrepareConfig(**settings)
    texts = [
        document.text
        for source in find_sources([path])
        for document in read_documents(source, config, findings, lambda n_bytes: None)
    ]
    return texts, findings


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folders_are_walked_in_the_order_of_names_without_hidden_ones(tmp_path: Path) -> None:
    for name in ["b/2.txt", "b/1.txt", "a.txt", ".hidden", ".git/config", "b/.hidden/3.txt"]:
        written(tmp_path / name, b"x")
    found = find_sources([tmp_path])
    assert [s.name for s in found] == [f"{tmp_path}/{n}" for n in ("a.txt", "b/1.txt", "b/2.txt")]
    assert not any(source.named for source in found)


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", b"x")
    assert len(find_sources([tmp_path, file, file])) == 1
    assert find_sources([tmp_path, file])[0].named


def test_what_is_no_file_is_left_out_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [source.path.name for source in find_sources([tmp_path])] == ["a.txt"]


def test_a_named_pipe_is_an_error_that_says_how_to_read_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: neither a file nor a folder.*'-'"):
        find_sources([tmp_path / "pipe"])


def test_every_byte_read_is_told_to_the_progress_bar(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.gz", gzip.compress(b"a" * 5000)), written(tmp_path / "b", b"bb")]
    told: list[int] = []
    for source in find_sources([tmp_path]):
        list(read_documents(source, PrepareConfig(), Findings(), told.append))
    assert sum(told) == sum(file.stat().st_size for file in files)


def test_each_json_line_is_a_document_whatever_line_ends_stand_in_its_text(tmp_path: Path) -> None:
    texts = ["one\u2028two\x85three\x0bfour\x0cfive\rsix\nseven", "the last, without a newline"]
    lines = "\n\n \n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    found, _ = read(written(tmp_path / "a.jsonl", lines.encode()))
    assert found == [text.encode() for text in texts]


@pytest.mark.parametrize(
    "content",
    [
        json_lines(["short", "other"]),
        json_lines(["long " * 50_000, "other"]),
        json_lines(["long " * 500_000, "other"]),
        b"\xef\xbb\xbf" + json_lines(["after a byte-order mark", "other"]),
        b"\n" + json_lines(["after an empty line", "other"]),
        b'{"text": "caf\xe9"}\n' + json_lines(["other"]),
    ],
    ids=["short", "long", "longer", "byte-order mark", "empty line", "not UTF-8"],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.tar"])
def test_json_lines_are_known_by_their_first_line(
    name: str, content: bytes, tmp_path: Path
) -> None:
    wrapped = {
        "a.json": content,
        "a.json.gz": gzip.compress(content),
        "a.tar": tar_of({"a": content}),
    }
    found, _ = read(written(tmp_path / name, wrapped[name]))
    assert len(found) == 2
    assert found[1] == b"other"


@pytest.mark.parametrize(
    "content",
    [
        b"{ text in braces }",
        b'{"other": "key"}\n',
        b'{\n "text": "pretty"\n}',
        b'{"text',
        b"[1, 2]",
    ],
)
def test_other_text_that_begins_like_json_is_one_plain_document(
    content: bytes, tmp_path: Path
) -> None:
    assert read(written(tmp_path / "a.txt", content))[0] == [content]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"body": "x", "id": 1}',
            r"line 3: no text under the key 'text'; found the keys 'body', 'id'",
        ),
        (b'{"text": 5}', r"line 3: no text under the key 'text'; found the keys 'text'"),
        (b'["text"]', r"line 3: no text under the key 'text'; found a list instead of an object"),
        (b"not JSON", r"line 3: not a JSON object .* Found b'not JSON"),
        (b"[" * 200_000, r"line 3: not a JSON object"),
        (b'{"text": "cut', r"line 3: not a JSON object"),
    ],
    ids=["no key", "a number", "a list", "no JSON", "deep", "cut short"],
)
def test_a_bad_json_line_is_an_error_that_names_it(
    line: bytes, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", json_lines(["one", "two"]) + line + b"\n")
    with pytest.raises(DataError, match=rf"^{path}, {message}"):
        read(path)


def test_text_key_names_another_key(tmp_path: Path) -> None:
    path = written(tmp_path / "a", json_lines(["one", "two"], key="body"))
    assert read(path, text_key="body")[0] == [b"one", b"two"]


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    found, findings = read(written(tmp_path / "a.jsonl", json_lines(["", "one", " \n\t", "two"])))
    assert found == [b"one", b"two"]
    assert findings.n_empty == 2
    assert findings.skipped == []


BAD, MENDED = b"caf\xe9 au lait", b"caf\xef\xbf\xbd au lait"


def test_bytes_that_are_no_utf8_are_replaced_or_skipped_as_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", tar_of({"bad": BAD, "good": b"good"}))
    found, findings = read(path)
    assert found == [MENDED, b"good"]
    assert findings.n_bad_bytes == 1
    assert findings.skipped == []
    found, findings = read(path, on_bad_bytes="skip")
    assert found == [b"good"]
    assert findings.skipped == [{"name": f"{path}/bad, byte 0", "reason": "not UTF-8"}]


def test_one_bad_json_line_costs_one_document(tmp_path: Path) -> None:
    lines = b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "three"}\n'
    path = written(tmp_path / "a.jsonl", lines)
    assert read(path)[0] == [b"one", b"caf\xef\xbf\xbd", b"three"]
    found, findings = read(path, on_bad_bytes="skip")
    assert found == [b"one", b"three"]
    assert findings.skipped == [{"name": f"{path}, line 2", "reason": "not UTF-8"}]


def test_bytes_that_are_no_utf8_are_an_error_where_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"good==" + BAD)
    with pytest.raises(DataError, match=rf"^{path}, byte 6: byte 3 from there, 0xe9, is not UTF-8"):
        read(path, on_bad_bytes="fail", separator="==")


def test_lone_surrogates_are_replaced_and_pairs_joined(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rb'{"text": "\ud800 \ud83d\ude00 \udc00"}')
    found, findings = read(path)
    assert found == ["\ufffd \U0001f600 \ufffd".encode()]
    assert findings.n_bad_bytes == 1


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.txt", b"\xef\xbb\xbftext"))[0] == [b"text"]


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("==", [b"a\nb", b"c\nd\t", b"e"]),
        (r"\n", [b"a", b"b==c", b"d\t==e"]),
        (r"\t==", [b"a\nb==c\nd", b"e"]),
        ("b==c", [b"a\n", b"\nd\t==e"]),
        (None, [b"a\nb==c\nd\t==e"]),
        ("", [b"a\nb==c\nd\t==e"]),
    ],
)
def test_a_separator_cuts_plain_files(
    separator: str | None, expected: list[bytes], tmp_path: Path
) -> None:
    path = written(tmp_path / "a.txt", b"a\nb==c\nd\t==e")
    assert read(path, separator=separator)[0] == expected


def test_a_few_zero_bytes_are_kept_and_counted(tmp_path: Path) -> None:
    text = b"x" * 99 + b"\0"
    found, findings = read(written(tmp_path / "a.txt", text))
    assert found == [text]
    assert findings.n_with_nul == 1


@pytest.mark.parametrize("content", [b"text" * 24 + b"\0\0", "text".encode("utf-16"), b"\0" * 999])
def test_a_binary_file_is_an_error_where_named_and_skipped_where_found(
    content: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.bin", content)
    with pytest.raises(UnreadableError, match=rf"^{path}: binary, not text"):
        read(path)
    found, findings = read(tmp_path)
    assert found == []
    assert findings.skipped == [{"name": str(path), "reason": "binary, not text"}]


def test_a_binary_file_in_a_named_archive_is_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", tar_of({"image": b"\0" * 50, "text": b"text"}))
    found, findings = read(path)
    assert found == [b"text"]
    assert findings.skipped == [{"name": f"{path}/image", "reason": "binary, not text"}]
