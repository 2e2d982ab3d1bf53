"""JSON's values, one after another, out of text that comes in blocks."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from common.errors import DataError

MAX_RECORD_BYTES = 256 << 20  # of its line, or its characters
TOO_LONG = f"longer than {MAX_RECORD_BYTES:,} bytes, the limit of a record: split its text"
LONGEST_LITERAL = 16  # characters: -Infinity, or an escape, and some
BLANKS = re.compile(r"[ \t\n\r]*")

raw_decode = json.JSONDecoder().raw_decode


class JsonValues:
    """JSON's values one after another, those in arrays too, as their text comes in blocks.

    Iterating stops before each; whoever iterates decodes it before the next. What is no JSON is a
    ValueError.
    """

    def __init__(self, blocks: Iterator[str]) -> None:
        self.ended = False  # all blocks were taken
        self._blocks = blocks
        self._text = ""  # held of it ...
        self._at = 0  # ... from here on
        self._n_before = 0  # characters

    @property
    def rest(self) -> str:
        """What is held of the value that breaks off."""
        return self._text[self._at :]

    def __iter__(self) -> Iterator[None]:
        while char := self._peek():
            if char != "[":
                yield
                continue
            self._skip("[")
            if self._peek() != "]":
                yield
                while self._peek() == ",":
                    self._skip(",")
                    yield
            self._skip("]")

    def decode(self) -> tuple[Any, bool]:
        """Return the value that comes next, and whether bytes in it were not UTF-8."""
        self._peek()
        while True:
            try:
                value, end = raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self._text) - LONGEST_LITERAL
                if not (near_end or error.msg.startswith("Unterminated")) or not self._fill():
                    raise self._error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._error("Brackets nested too deep", self._at) from error
            else:
                is_near_end = end > len(self._text) - LONGEST_LITERAL
                if not (isinstance(value, int | float) and is_near_end and self._fill()):
                    break  # else a number may go on
        text = self._text[self._at : end]
        self._at = end
        try:
            text.encode()
            return value, False
        except UnicodeEncodeError:
            raw = text.encode("utf-8", "surrogateescape")
            return json.loads(raw.decode("utf-8", "replace")), True

    def _peek(self) -> str:
        """Return the next character that is not blank, without going past it; "" at the end."""
        while True:
            self._at = BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _skip(self, char: str) -> None:
        if self._peek() != char:
            raise self._error(f"Expecting {char!r}", self._at)
        self._at += 1

    def _fill(self) -> bool:
        """Put as much again behind what is held, so that a long value is tried seldom, or False."""
        parts = [self.rest]
        if len(parts[0]) >= MAX_RECORD_BYTES:
            raise ValueError(TOO_LONG)
        n_missing = min(max(1, len(parts[0])), MAX_RECORD_BYTES - len(parts[0]))
        while n_missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            n_missing -= len(block)
        if len(parts) == 1:
            self.ended = True
            return False
        self._n_before += self._at
        self._text, self._at = "".join(parts), 0
        return True

    def _error(self, message: str, at: int) -> ValueError:
        return ValueError(f"{message.removesuffix(' at')} at character {self._n_before + at:,}")


def decode_utf8(blocks: Iterator[bytes], name: str, on_bad_bytes: str) -> Iterator[str]:
    """Yield the characters of each block, bytes that are not UTF-8 as surrogates or an error."""
    strict = on_bad_bytes == "fail"
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else "surrogateescape")
    n_read = 0
    for block in chain(blocks, [b""]):
        n_read += len(block)
        try:
            yield decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            start = n_read - len(error.object) + error.start
            raise not_utf8(name, start, error.object[error.start]) from error


def not_utf8(where: str, start: int, byte: int) -> DataError:
    """Return the error for ``byte``, which stands ``start`` bytes behind ``where``."""
    return DataError(
        f"{where}: byte {start:,} from there, {byte:#04x}, is not UTF-8. "
        "Convert the file, or pass --on-bad-bytes replace."
    )
