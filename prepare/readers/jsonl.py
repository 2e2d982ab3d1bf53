"""JSON -> documents: objects one a line, pretty-printed one after another, or in an array.

    {"text": "one"}        {                    [
    {"text": "two"}            "text": "one"        {"text": "one"},
                           }                        {"text": "two"}
                                                ]

The text is a string, a list of strings (joined by a blank line), or null, under a key or a path.
Lines longer than LONG_BYTES, and objects that lie across two blocks, are left to longjson.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import orjson

from common.errors import DataError
from prepare.archives.streams import HEAD_BYTES, Stream
from prepare.config import PrepareConfig
from prepare.readers.chunks import DROP, END, MORE, Chunk
from prepare.readers.longjson import MAX_KEYS, Scanner, decoded, not_utf8
from prepare.stats import Stats, UnreadableError

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
LONG_BYTES = 16 << 20  # a longer line is never held
BLOCK_BYTES = 1 << 20  # what is held of one
QUICK_BYTES = 1 << 18  # the longest line for orjson, which takes some 13 times its memory
BOM = b"\xef\xbb\xbf"
BEGINS_ARRAY = re.compile(rb"\s*\[\s*(?:[{\]]|\Z)")  # of objects, as far as its first line shows
_NOTHING = object()  # None stands for JSON's null


def looks_like_json(name: str, leaf: Stream, text_key: str) -> bool:
    """Tell by the name and the first bytes whether ``leaf`` is to be read as JSON."""
    if name.endswith(JSON_LINES_SUFFIXES):
        return True
    peeked = leaf.peek(HEAD_BYTES)
    is_whole = len(peeked) < HEAD_BYTES
    head = peeked.removeprefix(BOM).lstrip()
    if not head.startswith((b"{", b"[")):
        return False
    if name.endswith(".json"):
        return True
    text = head.decode("utf-8", "replace")
    first_line, newline, _ = text.partition("\n")
    if newline or is_whole:
        try:
            if _value_of(json.loads(first_line), text_key) is not _NOTHING:
                return True
        except (ValueError, RecursionError):
            pass
    return _holds_text(text, text_key, is_whole=is_whole)


def _holds_text(head: str, text_key: str, *, is_whole: bool) -> bool:
    """Tell whether ``head`` is JSON, or begins some, with a text under its key."""
    scanner = Scanner(iter([(head, False)]))
    found = False
    try:
        for _ in scanner.records():
            for _ in scanner.walk(text_key):
                pass
            found = found or bool(scanner.has_text)
    except ValueError:
        return scanner.ended and not is_whole and (found or bool(scanner.has_text))
    return found


def json_documents(name: str, leaf: Stream, config: PrepareConfig, stats: Stats) -> Iterator[Chunk]:
    """Yield the document of each object in ``leaf``; the text of an empty one is empty.

    Raises: DataError naming the line or record that is wrong, where --on-error is fail;
    UnreadableError instead where no text was met and the name promises none (.json, not .jsonl).
    """
    if leaf.peek(len(BOM)).startswith(BOM):
        leaf.read(len(BOM))
    reader = _Reader(name, config, stats)
    # A binary stream ends lines at \n only; str.splitlines() would also cut at U+2028 and others.
    read_line = partial(leaf.readline, LONG_BYTES)
    number, line = 1, read_line()
    while line.isspace():
        number += line.endswith(b"\n")
        line = read_line()
    following = b"" if _is_cut(line) else read_line()
    begun = filter(None, (line, following))
    if _lies_across_lines(line, following):
        yield from reader.records(chain(begun, iter(partial(leaf.read, BLOCK_BYTES), b"")))
    else:
        yield from reader.lines(leaf, chain(begun, iter(read_line, b"")), number)
    if reader.first_error:
        raise UnreadableError(reader.first_error.message) from reader.first_error


def _is_cut(line: bytes) -> bool:
    return len(line) >= LONG_BYTES and not line.endswith(b"\n")


def _lies_across_lines(line: bytes, following: bytes) -> bool:
    """Tell whether a file that begins so is an array, or goes on with the same object.

    What follows a damaged line does not go on from it: there, lines are read one by one.
    """
    if BEGINS_ARRAY.match(line):
        return True
    begun, rest = line.decode("utf-8", "replace"), following.decode("utf-8", "replace")
    try:
        json.loads(begun + rest)
    except json.JSONDecodeError as error:
        return error.pos > len(begun) + len(rest) - len(rest.lstrip())
    except (ValueError, RecursionError):
        return False
    return bool(rest.strip())


@dataclass
class _Reader:
    """The documents of one file, and what was met in it so far."""

    name: str
    config: PrepareConfig
    stats: Stats
    has_text: bool = False
    first_error: DataError | None = None  # kept while nothing says that the file should hold texts

    def lines(self, leaf: Stream, lines: Iterator[bytes], first_number: int) -> Iterator[Chunk]:
        """Yield the document of each of ``lines``, which come from ``leaf``."""
        for number, raw in enumerate(lines, first_number):
            where = f"{self.name}, line {number:,}"
            line = raw.removeprefix(BOM)  # where files were joined
            if _is_cut(raw):
                yield from self._long_line(_line_blocks(line, leaf), where)
                continue
            if not line or line.isspace():
                continue
            if len(line) <= QUICK_BYTES:
                try:
                    record = orjson.loads(line)
                except ValueError:  # it is wrong, or only Python's own takes it: told below
                    pass
                else:
                    yield from self._document(record, where)
                    continue
            is_mended = False
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                if self.config.on_bad_bytes == "fail":
                    raise not_utf8(where, error.start, line[error.start]) from error
                if self.config.on_bad_bytes == "skip":
                    self._skip_not_utf8(where)
                    continue
                text, is_mended = line.decode("utf-8", "replace"), True
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # the latter: brackets nested for ever
                found = f"Found {line[:40]!r}; each line must be one object."
                self._bad_json(f"{where}: not a JSON object ({error}). {found}", where)
            else:
                yield from self._document(record, where, is_mended=is_mended)

    def records(self, blocks: Iterator[bytes]) -> Iterator[Chunk]:
        """Yield the document of each object, wherever its lines end."""
        scanner = Scanner(decoded(blocks, self.name, self.config.on_bad_bytes))
        where = self.name
        try:
            for number, first_char in enumerate(scanner.records(), start=1):
                where = f"{self.name}, record {number:,}"
                record = scanner.whole_value() if first_char == "{" else None
                if record is None:
                    yield from self._walked(scanner, where)
                else:
                    yield from self._document(record, where)
        except ValueError as error:
            advice = "What follows cannot be read: mend the file, or pass --on-error skip."
            self._bad_json(f"{where}: not JSON ({error}). {advice}", where)

    def _document(self, record: Any, where: str, *, is_mended: bool = False) -> Iterator[Chunk]:
        try:
            text = text_of(record, self.config.text_key, where)
        except DataError as error:
            self._bad_text(error, where)
        else:
            self._found()
            encoded, has_surrogates = _encoded(text)
            self.stats.n_bad_bytes += is_mended or has_surrogates
            yield encoded, END

    def _long_line(self, blocks: Iterator[bytes], where: str) -> Iterator[Chunk]:
        scanner = Scanner(decoded(blocks, where, self.config.on_bad_bytes))
        try:
            if scanner.next_char():
                yield from self._walked(scanner, where, is_line=True)
        except ValueError as error:
            scanner.drain()
            if scanner.dirty and self.config.on_bad_bytes == "skip":
                self._skip_not_utf8(where)
                return
            advice = "Each line must be one object."
            self._bad_json(f"{where}: not a JSON object ({error}). {advice}", where)

    def _walked(self, scanner: Scanner, where: str, *, is_line: bool = False) -> Iterator[Chunk]:
        """Yield one document as it comes by. Whatever is no JSON is a ValueError."""
        first_char = scanner.next_char()
        is_given = is_mended = False
        try:
            for text in scanner.walk(self.config.text_key):
                self._found()
                encoded, has_surrogates = _encoded(text)
                is_given, is_mended = True, is_mended or has_surrogates
                yield encoded, MORE
            if is_line and scanner.next_char():
                raise ValueError("something follows it")
        except ValueError:
            if is_given:
                yield b"", DROP
            raise
        is_unwanted = scanner.bad_bytes and self.config.on_bad_bytes == "skip"
        if is_given and (is_unwanted or not scanner.has_text):
            yield b"", DROP
        if is_unwanted:
            self._skip_not_utf8(where)
            return
        if scanner.has_text:
            self._found()
            self.stats.n_bad_bytes += scanner.bad_bytes or is_mended
            yield b"", END
        else:
            found = _listed(scanner.keys) if first_char == "{" else "no object"
            self._bad_text(_no_text(where, self.config.text_key, found), where)

    def _found(self) -> None:
        if self.first_error:
            raise self.first_error
        self.has_text = True

    def _skip_not_utf8(self, where: str) -> None:
        self.stats.n_bad_bytes += 1
        self.stats.skip(where, "not UTF-8")

    def _bad_json(self, sentence: str, where: str) -> None:
        self._bad(DataError(sentence), where, "not JSON")

    def _bad_text(self, error: DataError, where: str) -> None:
        self._bad(error, where, f"no text under the key {self.config.text_key!r}")

    def _bad(self, error: DataError, where: str, reason: str) -> None:
        """Leave out a record, or raise; where nothing promises texts, only once one is met."""
        if self.config.on_error == "skip":
            self.stats.skip(where, reason)
        elif self.has_text or self.name.endswith(JSON_LINES_SUFFIXES):
            raise error
        else:
            self.first_error = self.first_error or error


def _line_blocks(line: bytes, leaf: Stream) -> Iterator[bytes]:
    """Yield the whole of a line of which only the beginning was read."""
    for start in range(0, len(line), BLOCK_BYTES):
        yield line[start : start + BLOCK_BYTES]
    while not line.endswith(b"\n") and (line := leaf.readline(BLOCK_BYTES)):
        yield line


def text_of(record: Any, text_key: str, where: str) -> str:
    """Return the text of an object: under the key itself, else under a.b as b in a.

    Raises: DataError when there is none.
    """
    value = _value_of(record, text_key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n\n".join(value)
    if not isinstance(record, dict):
        raise _no_text(where, text_key, f"a {type(record).__name__} instead of an object")
    raise _no_text(where, text_key, _listed(list(record)[:MAX_KEYS]))


def _value_of(record: Any, text_key: str) -> Any:
    if not isinstance(record, dict):
        return _NOTHING
    if text_key in record:
        return record[text_key]
    first, _, others = text_key.partition(".")
    return _value_of(record.get(first), others) if others else _NOTHING


def _no_text(where: str, text_key: str, found: str) -> DataError:
    return DataError(
        f"{where}: no text under the key {text_key!r}; found {found}. "
        "Name the right one: --text-key."
    )


def _listed(keys: list[str]) -> str:
    return "the keys " + ", ".join(map(repr, keys)) if keys else "an empty object"


def without_surrogates(text: str, stats: Stats) -> bytes:
    """Encode, a lone surrogate (JSON can write one) becoming U+FFFD."""
    encoded, has_surrogates = _encoded(text)
    stats.n_bad_bytes += has_surrogates
    return encoded


def _encoded(text: str) -> tuple[bytes, bool]:
    try:
        return text.encode("utf-8"), False
    except UnicodeEncodeError:
        pairs = text.encode("utf-16", "surrogatepass")
        return pairs.decode("utf-16", "replace").encode("utf-8"), True
