"""What a source is read as, by its content; what is left out of it, and what is an error."""

import gzip
import io
import json
import lzma
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from prepare.chunks import DROP, MORE, NAME, Chunk, Stats, UnreadableError
from prepare.config import PrepareConfig
from prepare.readers import documents
from prepare.readers.documents import read_source
from prepare.sources.discover import find_sources
from tests.prepare.making import json_lines, tar_of
from tests.processes import children


def whole(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    held = b""
    for text, chunk_end in chunks:
        if chunk_end is NAME:
            continue
        held += text
        if chunk_end is not MORE:
            if chunk_end is not DROP:
                yield held
            held = b""
    assert not held


def read(path: Path, **settings: Any) -> tuple[list[bytes], Stats]:
    stats = Stats()
    config = PrepareConfig(**settings)
    texts = [
        text
        for source in find_sources([path])
        for text in whole(read_source(source, config, stats, lambda n_bytes: None))
    ]
    return texts, stats


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zip_of(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


def test_every_byte_read_is_told_to_the_progress_bar(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.gz", gzip.compress(b"a" * 5000)), written(tmp_path / "b", b"bb")]
    told: list[int] = []
    for source in find_sources([tmp_path]):
        list(read_source(source, PrepareConfig(), Stats(), told.append))
    assert sum(told) == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    "content",
    [
        json_lines(["short", "other"]),
        json_lines(["long " * 50_000, "other"]),
        json_lines(["long " * 500_000, "other"]),
        b"\xef\xbb\xbf" + json_lines(["after a byte-order mark", "other"]),
        b"\n" + json_lines(["after an empty line", "other"]),
        b'{"text": "caf\xe9"}\n' + json_lines(["other"]),
        json.dumps([{"text": "in an array"}, {"text": "other"}], indent=1).encode(),
        json_lines(["in UTF-16", "other"]).decode().encode("utf-16"),
        json_lines(["in UTF-32", "other"]).decode().encode("utf-32"),
    ],
    ids=[
        *["short", "long", "longer", "byte-order mark", "empty line", "not UTF-8", "array"],
        *["UTF-16", "UTF-32"],
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.tar", "a.zip"])
def test_json_is_known_in_any_wrapping(name: str, content: bytes, tmp_path: Path) -> None:
    wrapped = {
        "a.json": content,
        "a.json.gz": gzip.compress(content),
        "a.tar": tar_of({"a": content}),
        "a.zip": zip_of({"a": content}),
    }
    found, stats = read(written(tmp_path / name, wrapped[name]))
    assert len(found) == 2
    assert found[1] == b"other"
    assert stats.reasons == {}


def test_plain_text_that_only_begins_as_json_stays_text(tmp_path: Path) -> None:
    for text in ["{ text in braces }", '{"other": "key"}\n', "[1, 2]"]:
        assert read(written(tmp_path / "a.txt", text.encode()))[0] == [text.encode()]
        assert read(written(tmp_path / "a.txt", text.encode("utf-16")))[0] == [text.encode()]


def test_newlines_are_collapsed_in_json_as_in_text(tmp_path: Path) -> None:
    text = "\n\n one\n\n\n\ntwo \n"
    for name, content in [("a.txt", text.encode()), ("a.jsonl", json_lines([text]))]:
        path = written(tmp_path / name, content)
        assert read(path, collapse_newlines=True)[0] == [b"one\n\ntwo"]
        assert read(path)[0] == [text.encode()]


@pytest.mark.parametrize(("max_ratio", "is_refused"), [(100, True), (180, True), (190, False)])
def test_what_a_source_expands_to_is_the_same_in_a_process_of_its_own(
    max_ratio: float, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A past bug: the layers of an archive were counted in two processes, each from nothing."""
    inner = gzip.compress(b"all the same " * 8_000_000, 1)
    outer = tar_of({"a": random.Random(0).randbytes(500_000).hex().encode(), "b.gz": inner})
    path = written(tmp_path / "a.tar.gz", gzip.compress(outer))
    monkeypatch.setattr(documents, "PREFETCH_BYTES", 1)
    for forks in (True, False):
        monkeypatch.setattr("prepare.readers.prefetch.can_fork", lambda forks=forks: forks)
        found, stats = read(path, max_ratio=max_ratio, on_error="skip")
        assert len(found) == (1 if is_refused else 2)
        assert stats.reasons.total() == is_refused


def test_line_ends_become_lf_in_plain_files_only(tmp_path: Path) -> None:
    text = "one\r\ntwo\r\n"
    found, stats = read(written(tmp_path / "a.txt", text.encode()))
    assert (found, stats.n_crlf) == ([b"one\ntwo\n"], 1)
    found, stats = read(tmp_path / "a.txt", newlines="keep")
    assert (found, stats.n_crlf) == ([text.encode()], 0)
    found, stats = read(written(tmp_path / "a.jsonl", json_lines([text])))
    assert (found, stats.n_crlf) == ([text.encode()], 0)


def test_latin_1_is_decoded_and_counted(tmp_path: Path) -> None:
    text = "Un caf\u00e9 cr\u00e8me et un th\u00e9, s'il vous pla\u00eet: o\u00f9 est-ce?"
    written(tmp_path / "in" / "a.txt", text.encode("latin-1"))
    written(tmp_path / "in" / "b.tar", tar_of({"a": text.encode("latin-1"), "b": text.encode()}))
    found, stats = read(tmp_path / "in")
    assert found == [text.encode()] * 3
    assert stats.encodings == {"cp1252": 2}  # the same for every letter of Latin-1
    assert stats.n_bad_bytes == 0


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", json_lines(["", "one", " \n\t", "two"]))
    written(tmp_path / "b.tar", tar_of({"empty": b"", "three": b"three", "blank": b"\n \xc2\xa0"}))
    found, stats = read(tmp_path)
    assert found[:3] == [b"one", b"two", b"three"]
    assert stats.n_empty + len(found) == 7
    assert stats.n_empty >= 3
    assert stats.skipped == []


def test_zero_bytes_in_json_are_counted_by_document(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", json_lines(["\0" * 9, "none", "x\0y\0"]))
    found, stats = read(path)
    assert found == [b"\0" * 9, b"none", b"x\0y\0"]
    assert stats.n_with_nul == 2


BINARY = b"text" * 24 + b"\0\0\1\1"


def test_a_binary_file_is_an_error_where_named_and_skipped_where_found(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bin", BINARY)
    with pytest.raises(UnreadableError, match=rf"^{path}: binary, not text"):
        read(path)
    found, stats = read(tmp_path)
    assert found == []
    assert [entry["name"] for entry in stats.skipped] == [str(path)]
    assert stats.reasons == {"binary, not text": 1}


@pytest.mark.parametrize("wrap", [tar_of, zip_of])
def test_what_is_no_text_in_a_named_archive_is_skipped(wrap: Any, tmp_path: Path) -> None:
    members = {
        "image": BINARY,
        "letter.docx": zip_of({"[Content_Types].xml": b"<x/>", "word.xml": b"<y/>"}),
        "table.json": b'{"id": 1}',
        "large.json": b'{"id": 1}\n' * 9,
        "text": b"text",
    }
    path = written(tmp_path / "a", wrap(members))
    found, stats = read(path)
    assert found == [b"text"]
    names = [f"{path}/{name}" for name in members if name != "text"]
    assert [entry["name"] for entry in stats.skipped] == names
    assert stats.reasons == {
        "binary, not text": 1,
        "an office document or e-book, not text": 1,
        "no text under the key 'text'": 2,
    }


def test_many_skipped_files_are_few_reasons(tmp_path: Path) -> None:
    members = {f"{i}.bin": b"\0" * (i + 9) for i in range(200)}
    _, stats = read(written(tmp_path / "a.tar", tar_of(members)))
    assert stats.reasons == {"binary, not text": 200}


TEXTS = [f"document {i} and more of it, {i * i} words" * 5 for i in range(900)]


def damaged(kind: str) -> tuple[str, bytes]:
    """Return a file's name and content, good at its beginning and damaged near its end."""
    lines = json_lines(TEXTS)
    members = tar_of({f"{i:03}": text.encode() for i, text in enumerate(TEXTS)})
    return {
        "cut xz": ("b.jsonl.xz", lzma.compress(lines)[:-40]),
        "cut gz": ("b.jsonl.gz", gzip.compress(lines)[:-9]),
        "cut tar": ("b.tar", members[: 300 * 1024 + 520]),
        "cut tar.gz": ("b.tar.gz", gzip.compress(members)[:-500]),
        "gz after gz": ("b.jsonl.gz", gzip.compress(lines) + b"something else"),
        "cut text": ("b.txt.gz", gzip.compress(b"one long text, " * 9000)[:-9]),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["cut xz", "cut gz", "cut tar", "cut tar.gz", "gz after gz", "cut text"]
)
def test_a_damaged_source_is_an_error_or_keeps_the_documents_before_the_damage(
    kind: str, tmp_path: Path
) -> None:
    name, content = damaged(kind)
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/b.*: ") as caught:
        read(path)
    written(tmp_path / "a.txt", b"before")
    written(tmp_path / "c.txt", b"behind")
    found, stats = read(tmp_path, on_error="skip")
    assert found[0] == b"before"
    assert found[-1] == b"behind"
    assert found[1:-1] == [text.encode() for text in TEXTS[: len(found) - 2]]
    assert str(path).startswith(stats.skipped[0]["name"].partition(".tar")[0])
    assert stats.skipped[0]["detail"] == caught.value.message
    assert sum(stats.reasons.values()) == 1
    (reason,) = stats.reasons
    assert not any(character.isdigit() for character in reason)
    assert reason in caught.value.message
    if kind == "cut tar":
        assert len(found) == 2 + 300
    if kind == "cut text":
        assert len(found) == 2


def test_one_bad_record_costs_one_document_where_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", json_lines(["one"]) + b"{\n" + json_lines(["two"]))
    with pytest.raises(DataError, match=rf"^{path}, line 2: not a JSON object"):
        read(path)
    found, stats = read(path, on_error="skip")
    assert found == [b"one", b"two"]
    assert stats.skipped == [{"name": f"{path}, line 2", "reason": "not JSON"}]


def test_a_file_that_is_gone_is_an_error_or_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"text")
    (source,) = find_sources([path])
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(No such file"):
        list(read_source(source, PrepareConfig(), Stats(), lambda n_bytes: None))
    stats = Stats()
    config = PrepareConfig(on_error="skip")
    assert list(whole(read_source(source, config, stats, lambda n_bytes: None))) == []
    assert stats.reasons == {"cannot be read": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"text")
    path.chmod(0)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(Permission denied"):
        read(path)


def test_an_archive_that_expands_too_much_is_an_error_that_names_the_option(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "a.xz", lzma.compress(b"all the same " * 8_000_000, preset=0))
    with pytest.raises(DataError, match=rf"^{path}: expands to .* --max-ratio is 1,000"):
        read(path)
    found, _ = read(path, max_ratio=1e6)
    assert len(found[0]) == 104_000_000


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_reading_can_be_given_up_anywhere(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that reads, or decompresses, ends with it, and what it read is told once."""
    monkeypatch.setattr(documents, "PREFETCH_BYTES", 1)
    lines = json_lines(["some text " * 1000] * 5_000)
    content = lzma.compress(lines, preset=0) if suffix else lines
    (source,) = find_sources([written(tmp_path / f"a.jsonl{suffix}", content)])
    told: list[int] = []
    chunks = read_source(source, PrepareConfig(), Stats(), told.append)
    for _ in range(600):  # 6 MB
        next(chunks)
    assert len(children()) == 1
    chunks.close()  # type: ignore[attr-defined]
    assert children() == []
    assert 0 < sum(told) <= len(content)
