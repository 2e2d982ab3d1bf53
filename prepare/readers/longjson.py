"""JSON that is never held as a whole: its text comes out piece by piece, as blocks of it go in.

    blocks of bytes --decoded--> blocks of characters --Scanner--> pieces of the text under the key

As strict as json.loads, with three differences: where the key stands twice, or as a.b and as b in
a, the first that is met counts, not the last, or a.b; and a number of more than MAX_SCALAR
characters, or brackets nested deeper than MAX_DEPTH, are refused.
"""

import codecs
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

from common.errors import DataError

MAX_DEPTH = 1_000  # about where json.loads runs out of Python's stack
MAX_SCALAR = 1 << 16  # characters
MAX_KEY = 100  # characters of a key that are kept, where the one looked for is no longer
MAX_TRIES = 4  # to decode at once what cannot be, a block: each may go through all of it
MAX_KEYS = 10  # of a record, kept to be shown

BLANKS = re.compile(r"[ \t\n\r]+")
SCALAR = re.compile(r'[^ \t\n\r,:"\[\]{}]+')
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of one that is not UTF-8
UNFINISHED_ESCAPE = 5  # characters: \u123

_raw_decode = JSONDecoder().raw_decode


def decoded(blocks: Iterator[bytes], where: str, on_bad_bytes: str) -> Iterator[tuple[str, bool]]:
    """Yield the characters of each block, and whether it begins to hold bytes not UTF-8, escaped.

    Raises: DataError where there are such bytes and ``on_bad_bytes`` is "fail".
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_decoded, is_last = 0, False
    while not is_last:
        block = next(blocks, b"")
        is_last = not block
        n_pending = len(decoder.getstate()[0])  # a character's first bytes
        try:
            yield decoder.decode(block, is_last), False
        except UnicodeDecodeError as error:
            if on_bad_bytes == "fail":
                start = n_decoded - n_pending + error.start
                raise not_utf8(where, start, error.object[error.start]) from error
            decoder.errors = "surrogateescape"
            yield decoder.decode(block, is_last), True
        n_decoded += len(block)


def not_utf8(where: str, start: int, byte: int) -> DataError:
    """Return the error for ``byte``, which stands ``start`` bytes behind ``where``."""
    return DataError(
        f"{where}: byte {start:,} from there, {byte:#04x}, is not UTF-8. "
        "Convert the file, or pass --on-bad-bytes replace."
    )


class Scanner:
    """A place in JSON that comes by in blocks. Whatever is no JSON is a ValueError."""

    def __init__(self, blocks: Iterator[tuple[str, bool]]) -> None:
        self._blocks = blocks
        self._text = ""  # what is at hand
        self._pos = 0  # in it
        self._n_before = 0  # characters
        self._n_tries = 0  # that failed in what is at hand
        self.ended = False  # all blocks were taken
        self.dirty = False  # bytes that are not UTF-8 were among them ...
        self.bad_bytes = False  # ... in the record walked last
        self.has_text: bool | None = None  # whether it has; None: there was no such key
        self.keys: list[str] = []  # it holds on the way to the text

    def next_char(self) -> str:
        """Return the next character that is not blank, without going past it; "" at the end."""
        while True:
            if blanks := BLANKS.match(self._text, self._pos):
                self._pos = blanks.end()
            if self._pos < len(self._text):
                return self._text[self._pos]
            if not self._fill():
                return ""

    def records(self) -> Iterator[str]:
        """Stop before each value, or, where that is an array, each item; give its first character.

        Whoever iterates goes past it before the next.
        """
        while char := self.next_char():
            if char == "[":
                for _ in self._parts("[]"):
                    yield self.next_char()
            else:
                yield char

    def whole_value(self) -> Any:
        """Go past an object or array and return it, or None where it is not at hand as a whole."""
        if self._n_tries >= MAX_TRIES:
            return None
        try:
            value, end = _raw_decode(self._text, self._pos)
        except (ValueError, RecursionError):
            end = -1
        if end < 0 or (self.dirty and ESCAPED_BYTE.search(self._text, self._pos, end)):
            self._n_tries += 1
            return None
        self._pos = end
        return value

    def drain(self) -> None:
        """Take all blocks that are left."""
        while self._fill():
            self._pos = len(self._text)

    def walk(self, text_key: str) -> Iterator[str]:
        """Go past the value that comes next and yield the pieces of its text, none of them empty.

        ``has_text``, ``keys`` and ``bad_bytes`` then tell of it.
        """
        self.has_text, self.keys, self.bad_bytes = None, [], False
        if self.next_char() == "{":
            yield from self._object(text_key)
        else:
            self._skip()

    def _object(self, text_key: str) -> Iterator[str]:
        first, _, others = text_key.partition(".")
        for _ in self._parts("{}"):
            key = self._key(len(text_key))
            if len(self.keys) < MAX_KEYS:
                self.keys.append(key)
            if self.has_text is None and key == text_key:
                yield from self._wanted()
            elif self.has_text is None and others and key == first and self.next_char() == "{":
                yield from self._object(others)
            else:
                self._skip()

    def _wanted(self) -> Iterator[str]:
        """Yield the text: a string, a list of strings, or null, which is none."""
        char = self.next_char()
        self.has_text = char in ('"', "[", "n")
        if char == '"':
            yield from self._string()
        elif char == "[":
            for number, _ in enumerate(self._parts("[]")):
                if self.next_char() == '"':
                    if number:
                        yield "\n\n"
                    yield from self._string()
                else:
                    self.has_text = False
                    self._skip()
        else:
            self._skip()  # of the values that begin with an n only null is one

    def _parts(self, brackets: str) -> Iterator[None]:
        """Stop before each part of the array or object that comes next, and go past its end."""
        self._take(brackets[0])
        if self.next_char() != brackets[1]:
            yield
            while self.next_char() == ",":
                self._take(",")
                yield
        self._take(brackets[1])

    def _skip(self) -> None:
        """Go past the value that comes next."""
        open_brackets: list[str] = []  # as what closes them
        while True:
            char = self.next_char()
            if char in ("{", "[") and self.whole_value() is None:
                self._take(char)
                open_brackets.append("}" if char == "{" else "]")
                if len(open_brackets) > MAX_DEPTH:
                    raise self._error(f"Brackets nested deeper than {MAX_DEPTH:,}")
                if self.next_char() != open_brackets[-1]:
                    if char == "{":
                        self._key()
                    continue
            elif char == '"':
                for _ in self._string():
                    pass
            elif char not in ("{", "["):
                self._scalar()
            while open_brackets and self.next_char() == open_brackets[-1]:
                self._take(open_brackets.pop())
            if not open_brackets:
                return
            self._take(",")
            if open_brackets[-1] == "}":
                self._key()

    def _key(self, n_wanted: int = 0) -> str:
        """Go past a key and its colon; return so much of it that a key of n_wanted is told."""
        if self.next_char() != '"':
            raise self._error("Expecting property name enclosed in double quotes")
        key = ""
        for piece in self._string():
            if len(key) <= n_wanted:
                key += piece[: max(MAX_KEY, n_wanted + 1)]
        self._take(":")
        return key

    def _scalar(self) -> None:
        while True:
            match = SCALAR.match(self._text, self._pos)
            scalar = match[0] if match else ""
            if len(scalar) > MAX_SCALAR:
                raise self._error("Number too long")
            if self._pos + len(scalar) < len(self._text) or not self._fill():
                break
        _, end = self._decode(scalar)
        self._pos += end  # whatever is left of it is not what has to follow

    def _string(self) -> Iterator[str]:
        """Go past the string that comes next and yield its content, in pieces that are not empty.

        What is at hand of a longer one is made a string by a quote behind it, and what follows by
        one before it.
        """
        try:
            content, end = self._decode(self._text, self._pos)  # as nearly always
        except ValueError:
            pass  # it goes on in the next block, or is wrong, which shows below
        else:
            self._pos = end
            if content:
                yield content
            return
        while True:
            cut = len(self._text) if self.ended else self._whole_escapes()
            closed = self._text[self._pos : cut] + '"'
            content, end = self._decode(closed)
            if end < len(closed):
                self._pos += end
                if content:
                    yield content
                return
            if self.ended:
                raise self._error("Unterminated string")
            opening = '"'
            if "\ud800" <= content[-1:] <= "\udbff":  # the other half may follow
                opening += rf"\u{ord(content[-1]):04x}"
                content = content[:-1]
            if content:
                yield content
            self._n_before += cut - len(opening)
            self._text, self._pos = opening + self._text[cut:], 0
            self._fill()

    def _whole_escapes(self) -> int:
        """Return the length of what is at hand, without an escape at its end that is not whole."""
        length = len(self._text)
        last = self._text.rfind("\\", max(self._pos, length - UNFINISHED_ESCAPE))
        if last < 0:
            return length
        run = self._text[self._pos : last + 1]
        n_backslashes = len(run) - len(run.rstrip("\\"))
        begins_escape = n_backslashes % 2 == 1
        return last if begins_escape and self._text[last + 1 :][:1] in ("", "u") else length

    def _decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """Return the value at ``start`` and its end."""
        try:
            value, end = _raw_decode(text, start)
        except JSONDecodeError as error:
            raise self._error(error.msg) from error
        if self.dirty and ESCAPED_BYTE.search(text, start, end):
            self.bad_bytes = True
            raw = text[start:end].encode("utf-8", "surrogateescape")
            value, _ = _raw_decode(raw.decode("utf-8", "replace"))
        return value, end

    def _take(self, char: str) -> None:
        if self.next_char() != char:
            raise self._error(f"Expecting {char!r}")
        self._pos += 1

    def _fill(self) -> bool:
        """Put the next block behind what is left; False: there is none."""
        text, dirty = next(self._blocks, ("", None))
        if dirty is None:
            self.ended = True
            return False
        self._n_before += self._pos
        self._text, self._pos, self._n_tries = self._text[self._pos :] + text, 0, 0
        self.dirty = self.dirty or dirty
        return True

    def _error(self, message: str) -> ValueError:
        place = self._n_before + self._pos
        return ValueError(f"{message.removesuffix(' at')} at character {place:,}")
