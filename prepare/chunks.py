"""What is read, and what is left out: documents in chunks, so that none is too long for the memory.

    (text, MORE) (text, MORE) (text, END)      one long document
    (text, END)                                one as short as most are
    (text, MORE) (b"", DROP)                   one that turned out to be none: forget its chunks
    (b"a.tar/b.jsonl", NAME)                   what follows is of this file; of its records each is
                                               a document (END) or none (DROP), so they are numbered

``rechunk`` makes chunks that can be encoded apart from one another: their ids, one after another,
are those of the whole document.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from common.errors import DataError

MAX_LISTED = 1_000  # left out, by name; beyond that they are only counted
COUNTERS = ("reasons", "encodings", "chats")  # of Stats
MAX_CHUNK_BYTES = 4 << 20  # small beside any memory; hardly a document is longer

ChunkEnd = Enum("ChunkEnd", ["MORE", "END", "DROP", "NAME"])
MORE, END, DROP, NAME = ChunkEnd
Chunk: TypeAlias = tuple[bytes, ChunkEnd]  # valid UTF-8 by itself, and what comes after it
ReadFile: TypeAlias = Callable[..., Iterator[Chunk]]  # documents.read_file, or the like of it

# Where no word of GPT-2's pattern, nor of cl100k's and o200k's, goes on: cut there, both sides have
# the words of the whole. All three end a word at the space behind what is no space, and at what
# follows a letter, unless that is a letter, a combining mark, or the apostrophe of a contraction.
# Bytes are unambiguous only where all characters of a range are alike, so these are not all such
# places, only enough of them in any script.
SAFE_SPLIT = re.compile(
    rb"""(?s:.*)  # greedy: the last one is found first
    (?=[\ \n\xe3\xef])  # for speed: one of these follows every place
    (?:
        (?<=[!-~])(?=\ )
      | (?<=[0-9A-Za-z])(?=\n)
      | (?<=[\xc3-\xdf][\x80-\xbf])(?=\ )  # U+00C0 to U+07FF: Latin, Greek, Cyrillic, ...
      # Thai, Hangul and others, but not the blocks that hold spaces: U+1680, U+2000 and U+3000
      | (?<=[\xe0\xe4-\xef][\x80-\xbf][\x80-\xbf])(?=\ )
      # from Han (U+5000 to U+9F7F) or Hiragana (U+3041 to U+307F) to their comma, stop, !, comma, ?
      | (?<= [\xe5-\xe8][\x80-\xbf][\x80-\xbf] | \xe9[\x80-\xbd][\x80-\xbf] | \xe3\x81[\x81-\xbf] )
        (?= \n | \xe3\x80[\x81\x82] | \xef\xbc[\x81\x8c\x9f] )
    )""",
    re.VERBOSE,
)
CUT_CHARACTER = re.compile(rb"(?:[\xc0-\xff]|[\xe0-\xff][\x80-\xbf]|[\xf0-\xff][\x80-\xbf]{2})\Z")


class UnreadableError(DataError):
    """A file that holds no text: left out where it was found, an error where it was named."""


@dataclass
class Stats:
    """Counts that end up in meta.json."""

    skipped: list[dict[str, str]] = field(default_factory=list)  # at most MAX_LISTED
    reasons: Counter[str] = field(default_factory=Counter)  # of everything skipped
    warnings: list[str] = field(default_factory=list)  # sentences; nothing was left out for them
    encodings: Counter[str] = field(default_factory=Counter)  # of files that were not UTF-8
    n_empty: int = 0
    n_bad_bytes: int = 0  # documents that were not UTF-8 (or had lone surrogates)
    n_with_nul: int = 0
    n_crlf: int = 0  # plain files in which CR LF became LF
    n_forced_cuts: int = 0  # places where a run of MAX_CHUNK_BYTES without a border was cut
    chats: Counter[str] = field(default_factory=Counter)  # of conversations; "kind/what": n

    def skip(self, name: str, reason: str, detail: str = "") -> None:
        """Record a file or document that is left out; ``reason`` is one of few."""
        self.reasons[reason] += 1
        if len(self.skipped) < MAX_LISTED:
            entry = {"name": name, "reason": reason}
            self.skipped.append(entry | {"detail": detail} if detail else entry)

    def warn(self, sentence: str) -> None:
        """Record what a person should know of though nothing was left out."""
        if len(self.warnings) < MAX_LISTED:
            self.warnings.append(sentence)

    def add(self, other: "Stats") -> None:
        """Add those of a later source."""
        for name, value in vars(other).items():
            total = getattr(self, name) + value
            setattr(self, name, total[:MAX_LISTED] if isinstance(total, list) else total)

    def as_json(self) -> dict[str, Any]:
        """Return it as meta.json holds it."""
        # not asdict: it takes a Counter's items for things to count
        items = vars(self).items()
        plain = {k: dict(v) if isinstance(v, Counter) else v for k, v in items}
        return {name: value for name, value in plain.items() if value or name != "chats"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Stats":
        """Read back what ``as_json`` gave."""
        counters = {name: Counter(value.get(name, {})) for name in COUNTERS}
        return cls(**value | counters)


def rechunk(chunks: Iterator[Chunk], stats: Stats) -> Generator[Chunk]:
    """Split longer chunks to MAX_CHUNK_BYTES where it is safe, and join shorter ones.

    Documents that are blank throughout are dropped and counted; those with zero bytes are counted.
    A run of MAX_CHUNK_BYTES without a safe split is cut inside, and counted: only there can the ids
    be others than those of the whole.
    """
    held: list[bytes] = []
    n_held, is_blank, has_nul = 0, True, False
    for text, chunk_end in chunks:
        if chunk_end is NAME:
            yield text, NAME
            continue
        has_nul = has_nul or b"\0" in text
        held.append(text)
        n_held += len(text)
        if n_held > MAX_CHUNK_BYTES and chunk_end is not DROP:
            whole, start = b"".join(held), 0
            while len(whole) - start > MAX_CHUNK_BYTES:
                part = whole[start : start + MAX_CHUNK_BYTES]
                n_bytes, is_safe = split_prefix_len(part)
                stats.n_forced_cuts += not is_safe
                is_blank = is_blank and part[:n_bytes].isspace()
                yield part[:n_bytes], MORE
                start += n_bytes
            held, n_held = [whole[start:]], len(whole) - start
        if chunk_end is MORE:
            continue
        last = b"".join(held)
        if chunk_end is END and not (is_blank and (not last or last.isspace())):
            stats.n_with_nul += has_nul
            yield last, END
        else:
            stats.n_empty += chunk_end is END
            yield b"", DROP
        held, n_held, is_blank, has_nul = [], 0, True, False


def split_prefix_len(text: bytes) -> tuple[int, bool]:
    """Return how much of ``text`` to split off, and whether that is safe: else it is in a word."""
    border = SAFE_SPLIT.match(text)
    return (border.end(), True) if border else (utf8_prefix_len(text), False)


def utf8_prefix_len(text: bytes) -> int:
    """Return the length of ``text`` without a character at its end that is not whole."""
    character = CUT_CHARACTER.search(text, max(0, len(text) - 3))
    return character.start() if character else len(text)


def skip_errors(
    name: str, chunks: Iterator[Chunk], on_error: str, stats: Stats, *, is_found: bool
) -> Iterator[Chunk]:
    """Yield ``chunks``; an error ends them, and is listed, where --on-error is skip.

    So does a file without text that was found in a folder or an archive, and not named. Other
    errors, also of what cannot be read, are raised as DataError.
    """
    try:
        yield from chunks
        return
    except OSError as error:
        message = f"{name}: cannot be read ({error.strerror or error})."
        if on_error == "fail":
            raise DataError(message) from error
    except DataError as error:
        message = error.message
        if on_error == "fail" and not (is_found and isinstance(error, UnreadableError)):
            raise
    yield b"", DROP
    # a reason ends before any number, so that alike ones are one
    _, _, what = message.removeprefix(name).partition(": ")
    reason = re.split(r",? (?:at|before) byte|,? \d|[:;.(]", what)[0].strip()
    stats.skip(name, reason, message)
