"""JSON's values, one after another, out of text that comes in blocks."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

MAX_RECORD_BYTES = 256 << 20  # of its line, or its characters
TOO_LONG = f"longer than {MAX_RECORD_BYTES:,} bytes, the limit of a record: split its text"
AMONG_OTHERS = "Or leave out the records without it, and have them listed: --on-error skip."
# Keys of conversations (shapes.py)
OF_CHATS = {"messages", "conversations", "instruction", "question", "prompt", "answer", "chosen"}
LONGEST_LITERAL = 16  # characters: -Infinity, or an escape, and some
BLANKS = re.compile(r"[ \t\n\r]*")

raw_decode = json.JSONDecoder().raw_decode


def to_utf8(text: str) -> tuple[bytes, bool]:
    """Encode; return also whether lone surrogates, which JSON can write, became U+FFFD."""
    try:
        return text.encode("utf-8"), False
    except UnicodeEncodeError:
        pairs = text.encode("utf-16", "surrogatepass")
        return pairs.decode("utf-16", "replace").encode("utf-8"), True


def advice_on(keys: Iterable[str]) -> str:
    """Return what to do where none of these keys is --text-key."""
    chats = " Or learn the answers in it: python -m prepare chats." if OF_CHATS & set(keys) else ""
    return f"Name the right one: --text-key.{chats}"


def is_joined(line: bytes) -> bool:
    """Return whether an object begins right behind the one that begins a line."""
    text = line.decode("utf-8", "replace").lstrip()
    with suppress(ValueError, RecursionError):
        _, end = raw_decode(text)
        return text.startswith("{") and text[end:].lstrip().startswith("{")
    return False


class JsonValues:
    """JSON's values, and whether bytes in them were not UTF-8; a ValueError for what is no JSON."""

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

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        while char := self._peek():
            if char != "[":
                yield self._decode()
                continue
            self._skip("[")
            if self._peek() != "]":
                yield self._decode()
                while self._peek() == ",":
                    self._skip(",")
                    yield self._decode()
            self._skip("]")

    def _decode(self) -> tuple[Any, bool]:
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
