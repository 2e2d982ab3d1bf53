"""Files of other formats: text taken out, said, or refused, and never read in silence."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.errors import DataError
from prepare.chunks import UnreadableError
from tests.prepare.making import json_lines, tar_of
from tests.prepare.readers.test_documents import read, written

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = b"<!DOCTYPE html>\n<html><body>404: not found</body></html>"


@pytest.mark.parametrize("name", ["train-0.parquet", "a.zst", "a.tar.gz", "a.jsonl", "a.txt", "a"])
def test_a_pointer_of_git_lfs_is_an_error_wherever_it_is_found(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "in" / name, POINTER)
    written(tmp_path / "in" / "z.txt", b"some text")
    with pytest.raises(DataError, match=rf"^{path}: a pointer of Git LFS .* 'git lfs pull'") as got:
        read(tmp_path / "in")
    assert not isinstance(got.value, UnreadableError)
    found, stats = read(tmp_path / "in", on_error="skip")
    assert found == [b"some text"]
    assert stats.reasons == {"a pointer of Git LFS to a file that is not here": 1}


@pytest.mark.parametrize("content", [PAGE, b"some text", b""])
def test_a_name_of_parquet_is_held_to_what_it_promises(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", content)
    with pytest.raises(DataError, match=rf"^{path}: named as parquet, but the content is no par"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"a\.tar/a\.parquet: named as parquet"):
        read(written(tmp_path / "a.tar", tar_of({"a.parquet": content})))


def test_lines_of_objects_without_the_key_are_an_error_under_any_name(tmp_path: Path) -> None:
    lines = json_lines([f"text {i}" for i in range(50)], key="body")
    for name, content in [("RC_2012-01.zst", zstandard.compress(lines)), ("dump", lines)]:
        path = written(tmp_path / "in" / name, content)
        message = rf"^{tmp_path}/in/.*, line 1: no text under the key 'text'; found the keys 'body'"
        with pytest.raises(DataError, match=message):
            read(tmp_path / "in")
        assert len(read(path, text_key="body")[0]) == 50
        path.unlink()


SUBTITLES = (
    "1\n00:00:01,000 --> 00:00:04,000\n<i>Good\nmorning.</i>\n\n2\n"
    "00:00:05,000 --> 00:00:06,500 X1:40\n{\\an8}It is 5.\n5\n\n3\n00:00:07,000 --> 00:00:09,000\n"
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_of_subtitles_only_what_is_said_is_read(line_end: str, tmp_path: Path) -> None:
    content = ("\ufeff" + SUBTITLES).replace("\n", line_end).encode()
    found, stats = read(written(tmp_path / "a.srt", content))
    assert found == [b"Good\nmorning.\nIt is 5.\n5\n"]
    found, _ = read(
        written(tmp_path / "a.srt", (SUBTITLES * 2_000 + "It\u2019s me.").encode("cp1252"))
    )
    assert found == [b"Good\nmorning.\nIt is 5.\n5\n" * 2_000 + "It\u2019s me.".encode()]
    assert stats.warnings == []


def test_an_article_of_wikiextractor_is_a_document(tmp_path: Path) -> None:
    articles = [f"Title {i}\n\nSome text, a &lt; b &amp;amp; c.\n" * 50 for i in range(60)]
    text = "".join(
        f'<doc id="{i}" url="https://x.org/?curid={i}" title="Title {i}">\n{article}\n</doc>\n'
        for i, article in enumerate(articles)
    )
    found, stats = read(written(tmp_path / "wiki_00", text.encode()))
    plain = (article.replace("&lt;", "<").replace("&amp;", "&").strip("\n") for article in articles)
    assert found == [article.encode() for article in plain]
    assert stats.warnings == []
    found, _ = read(written(tmp_path / "wiki_00", text[:-8].encode()))
    assert len(found) == 60


def test_of_a_notebook_the_cells_are_read(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# Title\n", "and text"]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["1\n"]}]},
        {"cell_type": "code", "source": []},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = written(tmp_path / "a.ipynb", json.dumps(notebook, indent=1).encode())
    assert read(path)[0] == [b"# Title\nand text\n\nprint(1)"]
    for content in (b"text", b"{}", b'{"cells": [5]}', b"[" * 9_999):
        with pytest.raises(UnreadableError, match=rf"^{path}: named as a notebook, but it is none"):
            read(written(path, content))


def warc(kind: str, content: bytes) -> bytes:
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return header.encode() + content + b"\r\n\r\n"


def test_a_record_of_a_wet_file_is_a_document(tmp_path: Path) -> None:
    texts = [f"page {i}\n\nWARC/1.0\r\n".encode() * i for i in range(1, 31)]
    records = [warc("warcinfo", b"software: x"), *(warc("conversion", text) for text in texts)]
    path = written(tmp_path / "CC.warc.wet.gz", b"".join(map(gzip.compress, records)))
    assert read(path)[0] == texts
    whole = b"".join(records)
    path = written(tmp_path / "a.wet", whole + warc("conversion", b"bad \xff byte"))
    found, stats = read(path)
    assert found == [*texts, "bad \ufffd byte".encode()]
    assert stats.n_bad_bytes == 1
    for cut, said in [(whole[:-9], "cut short: "), (whole + b"text\n", "damaged: no header")]:
        with pytest.raises(DataError, match=rf"^{path}, byte [\d,]+: {said}"):
            read(written(path, cut))
    with pytest.raises(UnreadableError, match=r"a WARC of web pages, with records of type request"):
        read(written(tmp_path / "a.warc", records[0] + warc("request", b"GET /")))


MARKED_UP = {
    "HTML": [PAGE, b"\xef\xbb\xbf\n<HTML>\n<p>x", b'<?xml version="1.0"?>\n<!-- a -->\n' + PAGE],
    "a dump of MediaWiki": [b'<mediawiki xmlns="http://www.mediawiki.org/xml/">\n<page>'],
    "XML": [b'<?xml version="1.0"?>\n<TEI>'],
    "an mbox of mail": [b"From 12@xxx Mon Jan 01 12:00:00 +0000 2024\nSubject: x\n\nText"],
    "subtitles in WebVTT": [b"WEBVTT\n\n00:01.000 --> 00:04.000\nText\n"],
    "JSON in which no text was found": [
        b'{\n "body": "x"\n}\n{\n "body": "y"\n}\n',
        b'[{"body": "x"}, {"body": "y"}]',
        b'{"body": "' + b"x" * 99_999,
    ],
}


@pytest.mark.parametrize(("what", "content"), [(w, c) for w in MARKED_UP for c in MARKED_UP[w]])
def test_what_is_read_with_its_markup_is_said(what: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", content)
    found, stats = read(path)
    assert found == [content.removeprefix(b"\xef\xbb\xbf")]
    [warning] = stats.warnings
    assert warning.startswith(f"{path}: {what}, read with its markup: ")


def test_names_tell_html_and_mail_too(tmp_path: Path) -> None:
    for name, what in [("a.html", "HTML"), ("a.HTM", "HTML"), ("a.mbox", "an mbox")]:
        [warning] = read(written(tmp_path / name, b"<p>part of a page</p>"))[1].warnings
        assert f"{name}: {what}" in warning


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (rb"{\rtf1\ansi Some text.}", "RTF, not plain text: save it"),
        (b"%PDF-1.7\n1 0 obj\n<< >>\n", "PDF, not plain text: take its text out"),
        (b"%!PS-Adobe-3.0\n(Text) show\n", "PostScript, not plain text: take its text out"),
    ],
)
def test_what_is_no_plain_text_is_an_error_where_named_and_listed_where_found(
    content: bytes, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", content)
    with pytest.raises(UnreadableError, match=rf"^{path}: {what}"):
        read(path)
    found, stats = read(tmp_path)
    assert found == []
    assert list(stats.reasons) == [what.partition(":")[0]]


@pytest.mark.parametrize(
    "text",
    [
        "From the beginning of 12:00 on\n",
        "<doctor> is no markup\n",
        "1\nis a number\n",
        "WEBVTTX",
        "{text}\n",
        "<html5> is one word, </s> another",
        "a <|endoftext|> in prose, and another <|endoftext|> of them\n",
        "one<|endoftext|>\ntwo",
        "one<|endoftext|>\ntwo\n<|endoftext|>\n",
        "It begins with <s> and ends with </s>\nas in <s>this</s>\n",
    ],
)
def test_plain_text_is_read_without_a_word(text: str, tmp_path: Path) -> None:
    found, stats = read(written(tmp_path / "a.txt", text.encode()))
    assert found == [text.encode()]
    assert stats.warnings == []


@pytest.mark.parametrize("mark", ["<|endoftext|>", "<|end_of_text|>", "</s>"])
@pytest.mark.parametrize("before", ["\n", ""])
def test_lines_of_end_marks_are_a_hint_at_the_separator(
    before: str, mark: str, tmp_path: Path
) -> None:
    text = "".join(f"text {i}{before}{mark}\n" for i in range(1_200))
    path = written(tmp_path / "a.txt", text.encode())
    found, stats = read(path)
    assert found == [text.encode()]
    [warning] = stats.warnings
    assert warning.startswith(f"{path}: one document, with 1,200 lines that end in {mark} ")
    assert f"--separator '{mark}'" in warning
    found, stats = read(path, separator=mark)
    assert len(found) == 1_200
    assert stats.warnings == []
