import io
import json
import re
import tracemalloc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.dataset import SPLITS
from common.errors import DataError
from prepare.archives.streams import begins_as_json
from prepare.chunks import DROP, END, Stats, UnreadableError
from prepare.config import PrepareConfig
from prepare.readers import json_values, jsonl
from prepare.readers.jsonl import json_documents, looks_like_json, record_text
from prepare.sources.source import JSON_LINES_SUFFIXES
from tests.prepare import making


@dataclass
class Outcome:
    texts: list[bytes]
    stats: Stats
    error: DataError | None = None


def read(
    content: bytes | Path,
    *,
    name: str = "a.jsonl",
    max_bytes: int = 256 << 20,
    block_bytes: int = 1 << 20,
    **config: Any,
) -> Outcome:
    """Read a file, or bytes; what an error leaves undone is in the outcome, too."""
    stats, texts, error = Stats(), [], None
    raw: Any = content.open("rb", buffering=0) if isinstance(content, Path) else io.BytesIO(content)
    with (
        pytest.MonkeyPatch.context() as patch,
        io.BufferedReader(raw, 1 << 16) as stream,
    ):
        patch.setattr(jsonl, "MAX_RECORD_BYTES", max_bytes)
        patch.setattr(json_values, "MAX_RECORD_BYTES", max_bytes)
        patch.setattr(jsonl, "BLOCK_BYTES", block_bytes)
        try:
            for text, chunk_end in json_documents(name, stream, PrepareConfig(**config), stats):
                if chunk_end is END:
                    texts.append(text)
                else:
                    assert (text, chunk_end) == (b"", DROP)
        except DataError as caught:
            error = caught
    return Outcome(texts, stats, error)


def texts(content: bytes, **given: Any) -> list[bytes]:
    outcome = read(content, **given)
    assert outcome.error is None
    return outcome.texts


def looks(content: bytes, name: str = "a", text_key: str = "text") -> bool:
    raw: Any = io.BytesIO(content)
    head = io.BufferedReader(raw, 1 << 16).peek()
    is_asked = name.endswith((".json", *JSON_LINES_SUFFIXES)) or begins_as_json(head)
    return is_asked and looks_like_json(name, head, text_key)


ONE = json.dumps({"id": 1, "text": "one"})
TWO = json.dumps({"text": "two", "more": [{"text": "not this"}]})
PRETTY = json.dumps({"id": {"text": "not this"}, "text": "three"}, indent=2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize(
    "content",
    [
        f"{ONE}\n{TWO}\n",
        f"{ONE}\n{TWO}",
        f"{ONE}\r\n{TWO}\r\n",
        f"\ufeff{ONE}\n\ufeff{TWO}\n\ufeff",
        f"\n \n{ONE}\n\n\t\r\n{TWO}\n\n",
        f"\ufeff\n{ONE}\n{TWO}",
        f"[{ONE},{TWO}]",
        f" [{ONE},\n{TWO}]\n",
        f"[\n  {ONE},\n  {TWO}\n]",
        json.dumps([json.loads(ONE), json.loads(TWO)], indent=4),
        json.dumps(json.loads(ONE), indent=1) + "\n" + json.dumps(json.loads(TWO), indent=1),
        json.dumps(json.loads(ONE), indent=1) + json.dumps(json.loads(TWO)),
        f"[{ONE}]\n[{TWO}]",
        '{"text":\n"one"}{"text":\n"two"}',
    ],
)
@pytest.mark.parametrize("size", [16 << 20, 7])
def test_every_layout_of_json_gives_the_same_documents(content: str, name: str, size: int) -> None:
    raw = content.encode()
    assert looks(raw, name)
    assert texts(raw, name=name, block_bytes=size) == [b"one", b"two"]


def test_each_line_is_a_document_whatever_line_ends_stand_in_its_text() -> None:
    lines = ["one\u2028two\x85three\x0bfour\x0cfive\rsix\nseven", "the last, without a newline"]
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in lines)
    assert texts(content.encode()) == [text.encode() for text in lines]


@pytest.mark.parametrize("content", [b"", b"\n", b"[]", b" [ ] \n", b"\xef\xbb\xbf", b"[][]"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_without_a_record_has_no_documents(content: bytes, name: str) -> None:
    assert texts(content, name=name) == []


VALUES = [
    ('"a string"', b"a string"),
    ('["a", "list", ""]', b"a\n\nlist\n\n"),
    ("[]", b""),
    ('""', b""),
    ("null", b""),
    (r'"\u00e9\n\ud83d\ude00\"\\"', '\u00e9\n\U0001f600"\\'.encode()),
]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_a_text_is_a_string_a_list_of_them_or_null(value: str, text: bytes) -> None:
    line = f'{{"text": {value}, "id": 1}}\n{ONE}'.encode()
    for block_bytes in (3, 1 << 20):
        assert texts(line, block_bytes=block_bytes) == [text, b"one"]
        assert texts(b"[\n]" + line, block_bytes=block_bytes) == [text, b"one"]


def test_a_text_key_is_taken_whole_and_else_as_a_path() -> None:
    records = [
        {"meta.body.text": "whole"},
        {"meta": {"body": {"text": "path", "id": 1}, "x": 2}, "body": {"text": "no"}},
        {"meta": {"body.text": "both"}},
    ]
    content = "\n".join(map(json.dumps, records)).encode()
    found = texts(content, block_bytes=5, text_key="meta.body.text")
    assert found == [b"whole", b"path", b"both"]


def test_a_text_under_the_whole_key_comes_before_one_under_the_path() -> None:
    assert record_text({"a": {"b": "path"}, "a.b": "whole"}, "a.b", "here") == "whole"


TURNS = [
    ("messages.content", {"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}),
    ("messages.content", {"messages": [{"content": ["x", "y"]}, {"content": None}]}),
    ("conversations.value", {"conversations": [{"from": "gpt", "value": "x"}, {"value": "y"}]}),
    ("a.b.c", {"a": [{"b": [{"c": "x"}]}, {"b": {"c": "y"}}, {"b": []}]}),
    ("data.text", {"data": [{"text": "x"}, {"text": "y"}]}),
]


@pytest.mark.parametrize(("text_key", "record"), TURNS)
def test_a_path_through_a_list_joins_the_texts_of_its_items(
    text_key: str, record: dict[str, Any]
) -> None:
    lines = f"{json.dumps(record)}\n" * 2
    for content in (lines, f"[{json.dumps(record, indent=1)}]", json.dumps(record)):
        assert looks(content.encode(), text_key=text_key)
        expected = [b"x\n\ny"] * (2 if content is lines else 1)
        assert texts(content.encode(), text_key=text_key) == expected
    error = read(lines.encode(), text_key=(first := text_key.partition(".")[0])).error
    assert error is not None
    assert "found a list of objects with the keys" in error.message
    assert f"--text-key {first}." in error.message


def test_an_item_without_the_last_key_of_a_path_is_an_error() -> None:
    error = read(b'{"a": [{"b": "x"}, {"c": "y"}]}', text_key="a.b").error
    assert error is not None
    assert "no text under the key 'a.b'; found the keys 'a'" in error.message


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    content = b'{"text": "first", "text": "last"}'
    assert texts(content) == [b"last"]
    assert texts(b"[\n]" + content, block_bytes=3) == [b"last"]


BAD_LINES = [
    (b'{"body": "x", "id": 1}', r"no text under the key 'text'; found the keys 'body', 'id'"),
    (b'{"text": 5}', r"no text under the key 'text'; found a number there"),
    (b'{"text": true}', r"no text under the key 'text'; found True there"),
    (b'{"text": ["x", 5]}', r"no text under the key 'text'; found a list there"),
    (b'{"text": {}}', r"no text under the key 'text'; found an object there"),
    (b'{"text": {"b": 1, "c": 2}}', r".*found an object with the keys 'b', 'c'.*--text-key text.b"),
    (b'{"text": [{"role": 1, "content": 2}]}', r".*found a list of obj.*--text-key text.content"),
    (b'"text"', r"no text under the key 'text'; found a string instead of an object. Write each"),
    (b"{}", r"no text under the key 'text'; found an empty object"),
    (b'["text"]', r"no text under the key 'text'; found (a list instead of an|no) object"),
    (b"not JSON", r"not a JSON object"),
    (b'{"text": "x"} {"text": "y"}', r"not a JSON object"),
    (b'{"text": "x",}', r"not a JSON object"),
    (b'{"text": "x" "y"}', r"not a JSON object"),
    (b'{"text": "x\ty"}', r"not a JSON object .*control character"),
    (b'{"text": "x\\y"}', r"not a JSON object .*escape"),
    (b'{"text": "x\\u12"}', r"not a JSON object .*escape"),
    (b"[" * 200_000, r"not a JSON object"),
    (b'{"text": "x", "y": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", r"not a JSON object"),
    (b'{"text": "x", "y": 1x}', r"not a JSON object"),
    (b'{"text": "cut', r"not a JSON object"),
    (b'{"text": "cut\\', r"not a JSON object"),
    (b'{"text": "cut"', r"not a JSON object"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_an_error_that_names_it_or_costs_one_document(
    line: bytes, message: str
) -> None:
    content = f"{ONE}\n\n".encode() + line + f"\n{TWO}\n".encode()
    stopped = read(content)
    assert stopped.texts == [b"one"]
    assert stopped.error is not None
    assert re.match(f"a.jsonl, line 3: {message}", stopped.error.message)
    skipped = read(content, on_error="skip")
    assert skipped.texts == [b"one", b"two"]
    [entry] = skipped.stats.skipped
    assert entry["name"] == "a.jsonl, line 3"
    assert entry["reason"] in ("not JSON", "no text under the key 'text'")


def test_a_line_that_is_damaged_does_not_swallow_the_next() -> None:
    content = f'{{"text": "cut"\n{ONE}\n[1, 2\n{TWO}'.encode()
    assert texts(content, on_error="skip") == [b"one", b"two"]
    assert texts(content[len('{"text": "cut"') + 1 :], on_error="skip") == [b"one", b"two"]


def test_one_record_without_text_costs_one_document_and_one_that_is_damaged_all_behind() -> None:
    content = f'[{ONE}, {{"body": "x"}}, 5, [{ONE}], {{"text": "cut", }}, {TWO}]'
    for size in (1 << 20, 3):
        stopped = read(content.encode(), block_bytes=size)
        assert stopped.error is not None
        assert stopped.error.message.startswith("a.jsonl, record 2: no text under the key 'text'")
        skipped = read(content.encode(), block_bytes=size, on_error="skip")
        assert skipped.texts == [b"one"]
        assert [entry["name"] for entry in skipped.stats.skipped] == [
            f"a.jsonl, record {number}" for number in (2, 3, 4, 5)
        ]
        assert skipped.stats.reasons == {"no text under the key 'text'": 3, "not JSON": 1}


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1, "b": "x"}', b'{\n "a": 1,\n "b": [{"text": "y"}]\n}', b'[{"a": 1, "b": 1}, 5]'],
)
@pytest.mark.parametrize("block_bytes", [1 << 20, 3])
def test_a_json_file_without_any_text_is_unreadable_and_json_lines_without_are_wrong(
    content: bytes, block_bytes: int
) -> None:
    error = read(content, name="a.json", block_bytes=block_bytes).error
    assert isinstance(error, UnreadableError)
    assert "no text under the key 'text'; found the keys 'a', 'b'" in error.message
    error = read(content, name="a.jsonl", block_bytes=block_bytes).error
    assert error is not None
    assert not isinstance(error, UnreadableError)


@pytest.mark.parametrize("content", [f'{{"a": 1}}\n{ONE}', f'[{{"a": 1}}, {ONE}]'])
def test_a_text_met_later_makes_a_record_without_one_an_error(content: str) -> None:
    stopped = read(content.encode(), name="a.json")
    assert stopped.texts == []
    assert stopped.error is not None
    assert not isinstance(stopped.error, UnreadableError)
    assert "1: no text" in stopped.error.message
    assert texts(content.encode(), name="a.json", on_error="skip") == [b"one"]


def test_a_record_without_text_behind_one_that_has_it_is_an_error() -> None:
    for content in (f'{ONE}\n{{"a": 1}}', f'[{ONE}, {{"a": 1}}]'):
        stopped = read(content.encode(), name="a.json")
        assert stopped.texts == [b"one"]
        assert stopped.error is not None
    assert not isinstance(stopped.error, UnreadableError)


def test_what_only_resembles_json_is_unreadable_under_the_name_of_json() -> None:
    assert isinstance(read(b"{ // comment\n}", name="a.json").error, UnreadableError)


@pytest.mark.parametrize(
    "content",
    [
        b"{ text in braces }",
        b'{"other": "key"}\n',
        b'{"text',
        b'{"text": "x"} is how one writes it',
        b'{\n  "text": "x"\n}\n\nis how one writes it',
        b'{"other": {"text": "too deep"}}',
        b'{\n  "other": [{"text": "too deep"}]\n}',
        b"[1, 2]",
        b'["text"]',
        b"[text]\nkey = 5",
        b"[text](http://link)",
        b"{% if text %}",
        b'{"text": ' + b"x" * (1 << 17),
        b'{"text": "x", y' + b"x" * (1 << 17),
        b'{"other": "' + b"x" * (1 << 17) + b'", "text": "y"}',
        b'{"other": "key"}\n{"as": "shown"}\nabove',
        b'{"other": "key"}\n["a", "list"]\n',
    ],
)
def test_other_text_that_begins_like_json_is_not_taken_for_it(content: bytes) -> None:
    assert not looks(content)


@pytest.mark.parametrize(
    ("content", "text_key"),
    [
        (b'{"text": "' + b"long " * 20_000, "text"),
        (b'[\n {"id": 1,\n "text": "' + b"long " * 20_000, "text"),
        (b'[{"id": 1}, {"text": null}]', "text"),
        (b'{\n "a": {\n "b": "x"}}', "a.b"),
        (b'{"a": {"b": "x"}}\nnot JSON', "a.b"),
        (b'{"text": "caf\xe9"}\n', "text"),
        (b'{"text": "x"}\n' * 10_000, "text"),
    ],
)
def test_json_is_known_by_the_text_under_its_key(content: bytes, text_key: str) -> None:
    assert looks(content, text_key=text_key)


def test_a_name_of_json_is_held_to_what_it_promises() -> None:
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        for content in (b' {"other": 5}', b"[]", b"text", b'// why\n{"text": "x"}'):
            assert looks(content, name)
    error = read(b'// why\n{\n  "text": "x"\n}\n', name="a.json").error
    assert isinstance(error, UnreadableError)
    assert error.message.startswith("a.json, line 1: not a JSON object")
    assert "b'// why" in error.message


LINES = b'{"id": 1, "body": "one"}\n{"id": 2, "body": "two"}\n'
LONG_LINES = b'{"body": "%s"}\n{"body": "%s"}\n{"body": ' % (b"x" * 30_000, b"y" * 30_000)
LONG_LINES += b'"%s"}\n' % (b"z" * 30_000)


@pytest.mark.parametrize("content", [LINES, b"\xef\xbb\xbf\n" + LINES, LINES * 9_000, LONG_LINES])
def test_lines_of_objects_are_json_lines_whatever_their_keys_and_their_name(content: bytes) -> None:
    assert looks(content)
    error = read(content, name="a").error
    assert error is not None
    assert not isinstance(error, UnreadableError)
    assert re.search(
        r"line \d: no text under the key 'text'; found the keys .*'body'", error.message
    )


BAD_BYTES = b'{"text": "one"}\n{"text": "caf\xe9 \xe2\x82A\xf0\x9f\x98"}\n{"text": "three"}\n'


@pytest.mark.parametrize("block_bytes", [1 << 20, 1, 2, 3, 5])
@pytest.mark.parametrize("is_array", [False, True])
def test_bytes_that_are_not_utf8_are_replaced_skipped_or_an_error(
    is_array: bool, block_bytes: int
) -> None:
    content, where = BAD_BYTES, "line 2"
    if is_array:
        content, where = (
            b"\xef\xbb\xbf\n[" + BAD_BYTES.strip().replace(b"\n", b",") + b"]",
            "record 2",
        )
    mended = BAD_BYTES.splitlines()[1][10:-2].decode("utf-8", "replace").encode()
    sizes: dict[str, Any] = {"block_bytes": block_bytes}
    replaced = read(content, **sizes)
    assert replaced.error is None
    assert replaced.texts == [b"one", mended, b"three"]
    assert replaced.stats.n_bad_bytes == 1
    skipped = read(content, on_bad_bytes="skip", **sizes)
    assert skipped.texts == [b"one", b"three"]
    assert skipped.stats.skipped == [{"name": f"a.jsonl, {where}", "reason": "not UTF-8"}]
    error = read(content, on_bad_bytes="fail", **sizes).error
    assert error is not None
    start = content.index(b"\xe9") if is_array else 13
    whole_or_line = "a.jsonl" if is_array else "a.jsonl, line 2"
    found = f"{whole_or_line}, byte {start}: 0xe9 is not UTF-8"
    assert error.message.startswith(found)


@pytest.mark.parametrize("block_bytes", [1 << 20, 1, 4, 7])
@pytest.mark.parametrize("before", [b"", b"[\n]"], ids=["line", "values"])
def test_lone_surrogates_are_replaced_and_pairs_joined(block_bytes: int, before: bytes) -> None:
    content = rb'{"text": "\ud800 \ud83d\ude00 \udc00\ud83d\ud83d\ude00\\ud83d\ud83d"}'
    outcome = read(before + content, block_bytes=block_bytes)
    expected = "\ufffd \U0001f600 \ufffd\ufffd\U0001f600\\ud83d\ufffd"
    assert outcome.texts == [expected.encode()]
    assert outcome.stats.n_bad_bytes == 1


@pytest.mark.parametrize("array", [False, True])
def test_a_record_longer_than_the_limit_is_an_error_and_lines_behind_it_are_read(
    array: bool,
) -> None:
    long = json.dumps({"text": "x" * 200})
    content = f"[{ONE},{long},{TWO}]" if array else f"{ONE}\n{long}\n{TWO}\n"
    where = "record 2: not JSON" if array else "line 2"
    stopped = read(content.encode(), max_bytes=120, block_bytes=10)
    assert stopped.error is not None
    assert stopped.error.message.startswith(f"a.jsonl, {where}")
    assert "longer than 268,435,456 bytes, the limit of a record" in stopped.error.message
    skipped = read(content.encode(), max_bytes=120, block_bytes=10, on_error="skip")
    assert skipped.texts == ([b"one"] if array else [b"one", b"two"])
    assert [entry["reason"] for entry in skipped.stats.skipped] == ["not JSON"]
    assert read(content.encode(), max_bytes=300, block_bytes=10).texts[2:] == [b"two"]


JSON_TEXT = st.text(
    st.sampled_from('ab"\\/\n\t \u00e9\u20ac\U0001f600\ud83d\ude00\x7f\u2028'), max_size=12
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | JSON_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "text", "a\n", ""]), inner, max_size=4)
    ),
    max_leaves=12,
)
TEXTS = JSON_TEXT | st.lists(JSON_TEXT) | st.none()
RECORDS = st.builds(
    lambda before, text, after: before | {"text": text} | after,
    st.dictionaries(st.sampled_from("abc"), JSON_VALUES, max_size=3),
    TEXTS | JSON_VALUES,
    st.dictionaries(st.sampled_from("def"), JSON_VALUES, max_size=3),
)


def changed(text: str, change: tuple[float, str, int]) -> bytes:
    """Encode with something put in, at a share of the length, in the place of some characters."""
    where, put, n_deleted = change
    at = int(where * len(text))
    damaged = text[:at] + put + text[at + (n_deleted if put else 0) :]
    with suppress(UnicodeEncodeError):
        return damaged.encode("utf-8", "surrogateescape")
    return damaged.encode("utf-8", "replace")  # halves of pairs, written as they are


CHANGES = st.tuples(
    st.floats(0, 1),
    st.sampled_from(["", "", *'{}[]",:\\u1 n\x01\n', "\udce9", "\udce2\udc82"]),
    st.integers(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(
    records=st.lists(RECORDS | JSON_VALUES, min_size=1, max_size=4),
    indent=st.sampled_from([None, 1]),
    change=CHANGES,
    block_bytes=st.integers(1, 30),
    on_bad_bytes=st.sampled_from(["replace", "skip"]),
)
def test_an_array_is_read_alike_however_it_is_cut(
    records: list[Any],
    indent: int | None,
    change: tuple[float, str, int],
    block_bytes: int,
    on_bad_bytes: str,
) -> None:
    content = b"[\n]" + changed(json.dumps(records, indent=indent, ensure_ascii=False), change)
    given: dict[str, Any] = {"on_error": "skip", "on_bad_bytes": on_bad_bytes}
    assert read(content, block_bytes=block_bytes, **given) == read(content, **given)


def texts_of(value: Any) -> list[str | None]:
    """Return the texts that stand in a file's values; None for each record without one."""
    found: list[str | None] = []
    for record in value if isinstance(value, list) else [value]:
        text = record.get("text", 5) if isinstance(record, dict) else 5
        if isinstance(text, list) and all(isinstance(item, str) for item in text):
            text = "\n\n".join(text)
        found.append("" if text is None else text if isinstance(text, str) else None)
    return found


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(RECORDS | st.lists(RECORDS | JSON_VALUES, max_size=4), min_size=1, max_size=3),
    indent=st.sampled_from([None, 0, 1, 4]),
    block_bytes=st.integers(1, 30),
)
def test_an_array_of_records_and_records_in_a_row_are_read_as_json_reads_them(
    values: list[Any], indent: int | None, block_bytes: int
) -> None:
    content = "[\n]" + "\n".join(json.dumps(value, indent=indent) for value in values)
    outcome = read(content.encode(), on_error="skip", block_bytes=block_bytes)
    expected = [text for value in json.loads(json.dumps(values)) for text in texts_of(value)]
    assert outcome.error is None
    assert outcome.texts == [
        re.sub("[\ud800-\udfff]", "\ufffd", text).encode() for text in expected if text is not None
    ]
    assert outcome.stats.reasons.total() == expected.count(None)


@pytest.mark.parametrize("is_array", [False, True])
def test_memory_does_not_grow_with_the_length_of_a_file(is_array: bool, tmp_path: Path) -> None:
    path, size = tmp_path / "a.json", 24 << 20
    record = json.dumps({"text": "x" * 985})
    joined = (",\n" if is_array else "\n").join([record] * (size // len(record)))
    path.write_text(f"[{joined}]" if is_array else joined, encoding="utf-8")
    tracemalloc.start()
    try:
        with path.open("rb") as stream:
            chunks = json_documents(path.name, stream, PrepareConfig(), Stats())
            n_bytes = sum(len(text) for text, _ in chunks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes == size // len(record) * 985
    assert peak < 10 << 20


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "utf-16-le", "utf-16"])
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
def test_json_in_another_encoding_is_read_as_text_is(
    encoding: str, is_named: bool, name: str, tmp_path: Path
) -> None:
    text = (
        "\u5f88\u5b89\u9759\uff0c\u96ea\u843d\u5728\u5c4b\u9876\u4e0a\u3002\u6211\u4eec\u559d\u8336"
        if encoding == "gb18030"
        else "the caf\u00e9"
    )
    texts = [f"{i}: {text}" for i in range(60)]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / name).write_bytes(lines.encode(encoding))
    options: dict[str, Any] = {"encoding": encoding} if is_named else {}
    data = making.prepare([tmp_path / name], tmp_path / "data", split_rule="hash", **options)
    found = [text for split in SPLITS for text in making.texts_of(data, split)]
    assert sorted(found) == sorted(text.encode() for text in texts)
    assert data.meta["encodings"] == {encoding: 1}
    assert data.meta["n_bad_bytes"] == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("between", ["", " ", "\n "])
@pytest.mark.parametrize("n", [2, 50, 30_000])
def test_objects_behind_one_another_need_no_line_ends(name: str, between: str, n: int) -> None:
    content = between.join(json.dumps({"text": f"text {i}"}) for i in range(n)).encode()
    found = read(content, name=name)
    assert found.texts == [b"text %d" % i for i in range(n)]
    assert found.error is None


def test_where_other_records_have_the_key_leaving_some_out_is_proposed() -> None:
    lines = b'{"text": "a"}\n{"title": "b"}\n'
    advice = "--text-key. Or leave out the records without it, and have them listed: --on-error sk"
    assert advice in str(read(lines).error)
    assert "--on-error" not in str(read(lines[14:]).error)
    assert read(lines, on_error="skip").texts == [b"a"]
