"""JSON -> documents: objects one a line, pretty-printed one after another, or in an array.

    {"text": "one"}        {                    [
    {"text": "two"}            "text": "one"        {"text": "one"},
                           }                        {"text": "two"}
                                                ]

A record is held whole, in some three times its length, which MAX_RECORD_BYTES limits.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeAlias

import orjson

from common.errors import DataError
from prepare.archives.streams import HEAD_BYTES, Stream, bad_byte, decode
from prepare.chunks import DROP, END, Chunk, Stats, UnreadableError
from prepare.config import PrepareConfig
from prepare.readers.json_values import (
    AMONG_OTHERS,
    MAX_RECORD_BYTES,
    TOO_LONG,
    JsonValues,
    advice_on,
    is_joined,
    to_utf8,
)
from prepare.sources.source import JSON_LINES_SUFFIXES

BLOCK_BYTES = 1 << 20  # read at a time
ORJSON_BYTES = 1 << 18  # the longest line for orjson, which takes some 13 times its memory
BEGINS_ARRAY = re.compile(rb"\s*\[\s*(?:[{\]]|\Z)")  # of objects, as far as its first line shows
MAX_KEYS = 10  # of a record, that are shown
NOTHING = object()  # None stands for JSON's null
FIRST_LINES = 5  # are objects: then the file is of JSON lines, whatever its name and its keys
USUAL_KEYS = ("content", "value", "text")  # of the text in lists of turns
KINDS = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}

# Its place; what it is, an error, or NOTHING for a blank line; whether bytes in it are not UTF-8.
Record: TypeAlias = tuple[str, Any, bool]


def begins_with_object_lines(head: bytes) -> bool:
    """Return whether the first lines, at least two, are a JSON object each, as in no plain text."""
    whole = head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    lines = whole.removeprefix(codecs.BOM_UTF8).splitlines()
    first = [line for line in lines if line.strip()][:FIRST_LINES]
    with suppress(ValueError, RecursionError):
        texts = (line.decode("utf-8", "replace") for line in first)
        return len(first) > 1 and all(isinstance(json.loads(text), dict) for text in texts)
    return False


def looks_like_json(name: str, head: bytes, text_key: str) -> bool:
    """Return whether a file that begins so, HEAD_BYTES at most, or is named so, is read as JSON."""
    if name.endswith((".json", *JSON_LINES_SUFFIXES)) or begins_with_object_lines(head):
        return True
    is_whole = len(head) < HEAD_BYTES
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().decode("utf-8", "replace")
    first_line, newline, _ = text.partition("\n")
    if newline or is_whole:
        with suppress(ValueError, RecursionError):
            if value_at(json.loads(first_line), text_key) is not NOTHING:
                return True
    values, found = JsonValues(iter([text])), False
    try:
        for value, _ in values:
            with suppress(NoTextError):
                record_text(value, text_key, "")
                found = True
    except ValueError:
        return values.ended and not is_whole and (found or _begins_text(values.rest, text_key))
    return found


def _begins_text(record: str, text_key: str) -> bool:
    """Return whether an object that breaks off seems to have a text under its key."""
    keys = (json.dumps(key, ensure_ascii=False) for key in (text_key, text_key.split(".")[-1]))
    return re.search(rf'({"|".join(map(re.escape, keys))})\s*:\s*["\[n]', record) is not None


class NoTextError(DataError):
    """A record that has no text under the key."""


def record_text(record: Any, text_key: str, where: str) -> str:
    """Return the text under the key, or raise NoTextError.

    It is a string, a list of strings, joined by a blank line, or null, which is empty.
    """
    value = value_at(record, text_key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n\n".join(value)
    inner = value[0] if isinstance(value, list) and value else value
    advice = "Name the right one: --text-key."
    if not isinstance(record, dict):
        found = f"{KINDS.get(type(record), record)} instead of an object"
        advice = f'Write each record as an object: {{"{text_key}": "..."}}.'
    elif isinstance(inner, dict) and inner:
        found = f"{'a list of objects' if inner is not value else 'an object'} with {_keys(inner)}"
        usual = next((key for key in USUAL_KEYS if key in inner), next(iter(inner)))
        advice = f"Name what is in there: --text-key {text_key}.{usual} reads it."
    elif value is not NOTHING:
        found = f"{KINDS.get(type(value), value)} there"
    else:
        found, advice = _keys(record), advice_on(record)
    raise NoTextError(f"{where}: no text under the key {text_key!r}; found {found}. {advice}")


def _keys(record: dict[str, Any]) -> str:
    keys = ", ".join(map(repr, list(record)[:MAX_KEYS]))
    return f"the keys {keys}" if keys else "an empty object"


def value_at(record: Any, text_key: str) -> Any:
    """Return what stands under the key, whole or as a path, or NOTHING.

    Through a list a path leads to the values of all its items: of {"a": [{"b": "x"}, {"b": "y"}]}
    "a.b" is ["x", "y"]. A null among them, as the content of a call of a tool is, is left out.
    """
    if not isinstance(record, dict):
        return NOTHING
    if text_key in record:
        return record[text_key]
    first, _, others = text_key.partition(".")
    if not others:
        return NOTHING
    inner = record.get(first)
    if not isinstance(inner, list):
        return value_at(inner, others)
    values = [value_at(item, others) for item in inner]
    if NOTHING in values:
        return NOTHING
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [value for value in chain.from_iterable(lists) if value is not None]


def no_column(name: str, text_key: str, columns: list[str]) -> DataError:
    """Return the error for a table without the column."""
    names = ", ".join(map(repr, columns[:MAX_KEYS]))
    return DataError(f"{name}: no column {text_key!r}; there are {names}. {advice_on(columns)}")


def json_documents(
    name: str, stream: Stream, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    """Return the document of each object in ``stream``."""
    is_promised = name.endswith(JSON_LINES_SUFFIXES) or (
        not name.endswith(".json") and begins_with_object_lines(stream.peek(HEAD_BYTES))
    )
    records = json_records(name, stream, config)
    return record_documents(records, config, stats, is_promised=is_promised)


def record_documents(
    records: Iterable[Record],
    config: PrepareConfig,
    stats: Stats,
    *,
    is_promised: bool,
    kind: str = "JSON",
) -> Iterator[Chunk]:
    """Yield the document of each record; the text of an empty one is empty.

    Where --on-error is fail, raise DataError naming the line or record that is wrong; where no text
    was met, and none ``is_promised`` (by .jsonl, not .json), UnreadableError.
    """
    has_texts = False
    first_error: DataError | None = None  # kept while nothing says that the file holds texts
    for where, record, has_bad_bytes in records:
        if is_bad := has_bad_bytes and config.on_bad_bytes == "skip":
            stats.n_bad_bytes += 1
            stats.skip(where, "not UTF-8")
        if is_bad or record is NOTHING:
            yield b"", DROP
            continue
        try:
            if isinstance(record, DataError):
                raise record
            text, has_surrogates = to_utf8(record_text(record, config.text_key, where))
        except DataError as error:
            if config.on_error == "skip":
                no_text = f"no text under the key {config.text_key!r}"
                stats.skip(where, no_text if isinstance(error, NoTextError) else f"not {kind}")
                yield b"", DROP
            elif is_promised:
                if isinstance(error, NoTextError) and has_texts:
                    raise NoTextError(f"{error.message} {AMONG_OTHERS}") from error
                raise
            else:
                first_error = first_error or error
        else:
            if first_error:
                raise first_error
            is_promised = has_texts = True
            stats.n_bad_bytes += has_bad_bytes or has_surrogates
            yield text, END
    if first_error:
        raise UnreadableError(first_error.message) from first_error


def json_records(name: str, stream: Stream, config: PrepareConfig) -> Iterator[Record]:
    """Yield the objects in ``stream``, of lines or of values one after another."""
    begin = stream.tell()
    if stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    # A binary stream ends lines at \n only; str.splitlines() would also cut at U+2028 and others.
    number, line = 1, stream.readline(BLOCK_BYTES)
    while line.isspace():
        number += line.endswith(b"\n")
        line = stream.readline(BLOCK_BYTES)
    is_array = BEGINS_ARRAY.match(line) is not None or is_joined(line)
    if not (is_array or line.endswith(b"\n")):
        line += stream.readline(MAX_RECORD_BYTES - len(line))
    max_bytes = BLOCK_BYTES if is_array else MAX_RECORD_BYTES
    following = stream.readline(max_bytes) if line.endswith(b"\n") else b""
    first = filter(None, (line, following))
    if is_array or _continues(line, following):
        n_before = stream.tell() - begin - len(line) - len(following)
        blocks = chain(first, iter(partial(stream.read, BLOCK_BYTES), b""))
        errors = "strict" if config.on_bad_bytes == "fail" else "surrogateescape"
        return _values(name, JsonValues(decode(name, blocks, "utf-8", errors, n_before)), config)
    lines = iter(partial(stream.readline, MAX_RECORD_BYTES), b"")
    return _lines(name, chain(repeat(b"\n", number - 1), first, lines), config.on_bad_bytes)


def _continues(line: bytes, following: bytes) -> bool:
    """Return whether the object that a line begins goes on in the following one.

    What follows a damaged line does not go on from it: there, lines are read one by one.
    """
    text, rest = line.decode("utf-8", "replace"), following.decode("utf-8", "replace")
    try:
        json.loads(text + rest)
    except json.JSONDecodeError as error:
        return error.pos > len(text) + len(rest) - len(rest.lstrip())
    except (ValueError, RecursionError):
        return False
    return bool(rest.strip())


def _lines(name: str, lines: Iterator[bytes], on_bad_bytes: str) -> Iterator[Record]:
    """Yield what each line holds."""
    for number, raw in enumerate(lines, 1):
        line = raw.removeprefix(codecs.BOM_UTF8)  # where files were joined
        where = f"{name}, line {number:,}"
        if not line or line.isspace():
            yield where, NOTHING, False
            continue
        if len(raw) >= MAX_RECORD_BYTES and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = next(lines, b"")
            yield where, DataError(f"{where}: {TOO_LONG}"), False
            continue
        try:
            record = orjson.loads(line) if len(line) <= ORJSON_BYTES else NOTHING
        except ValueError:  # it is wrong, or only Python's own takes it
            record = NOTHING
        yield _line(line, where, on_bad_bytes) if record is NOTHING else (where, record, False)


def _line(line: bytes, where: str, on_bad_bytes: str) -> Record:
    try:
        text, has_bad_bytes = line.decode("utf-8"), False
    except UnicodeDecodeError as error:
        if on_bad_bytes == "fail":
            raise bad_byte(where, error, 0, "utf-8") from error
        text, has_bad_bytes = line.decode("utf-8", "replace"), True
    try:
        return where, json.loads(text), has_bad_bytes
    except (ValueError, RecursionError) as error:  # the latter: brackets nested for ever
        found = f"Found {line[:40]!r}; each line must be one object."
        return where, DataError(f"{where}: not a JSON object ({error}). {found}"), has_bad_bytes


def _values(name: str, values: JsonValues, config: PrepareConfig) -> Iterator[Record]:
    """Yield JSON's values, wherever its lines end."""
    number = 0
    try:
        for number, (value, has_bad_bytes) in enumerate(values, start=1):
            yield f"{name}, record {number:,}", value, has_bad_bytes
    except ValueError as error:
        where = f"{name}, record {number + 1:,}"
        advice = "What follows cannot be read: mend the file, or pass --on-error skip."
        bad = DataError(f"{where}: not JSON ({error}). {advice}")
        if config.on_error == "fail" and _begins_text(values.rest, config.text_key):
            raise bad from error
        yield where, bad, False
