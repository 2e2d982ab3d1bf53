"""A document as it streams by: in chunks, so that none is ever too long for the memory.

    (text, MORE) (text, MORE) (text, END)      one long document
    (text, END)                                one as short as most are
    (text, MORE) (b"", DROP)                   one that turned out to be none: forget its chunks

``rechunk`` makes chunks that can be encoded apart from one another: their ids, one after another,
are those of the whole document.
"""

import re
from collections.abc import Generator, Iterator
from enum import Enum
from typing import Protocol, TypeAlias

MAX_CHUNK_BYTES = 4 << 20  # small beside any memory; hardly a document is longer

ChunkEnd = Enum("ChunkEnd", ["MORE", "END", "DROP"])
MORE, END, DROP = ChunkEnd.MORE, ChunkEnd.END, ChunkEnd.DROP
Chunk: TypeAlias = tuple[bytes, ChunkEnd]  # valid UTF-8 by itself, and what comes after it

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


class Counts(Protocol):
    """What ``rechunk`` counts."""

    n_empty: int  # documents that are blank throughout
    n_forced_cuts: int


def rechunk(chunks: Iterator[Chunk], counts: Counts) -> Generator[Chunk]:
    """Split longer chunks to MAX_CHUNK_BYTES where it is safe, and join shorter ones.

    Documents that are blank throughout are dropped and counted. A run of MAX_CHUNK_BYTES without a
    safe split is cut inside, and counted: only there can the ids be others than those of the whole.
    """
    held: list[bytes] = []
    n_held, is_blank, is_split = 0, True, False  # the last: some of the document was yielded
    for text, chunk_end in chunks:
        if chunk_end is END and not (held or is_split) and len(text) <= MAX_CHUNK_BYTES:
            if text and not text.isspace():
                yield text, END  # as most are
            else:
                counts.n_empty += 1
            continue
        held.append(text)
        n_held += len(text)
        if n_held > MAX_CHUNK_BYTES and chunk_end is not DROP:
            whole, start = b"".join(held), 0
            while len(whole) - start > MAX_CHUNK_BYTES:
                part = whole[start : start + MAX_CHUNK_BYTES]
                n_bytes, is_safe = split_prefix_len(part)
                counts.n_forced_cuts += not is_safe
                is_blank = is_blank and part[:n_bytes].isspace()
                yield part[:n_bytes], MORE
                start += n_bytes
                is_split = True
            held, n_held = [whole[start:]], len(whole) - start
        if chunk_end is MORE:
            continue
        last = b"".join(held)
        if chunk_end is END and not (is_blank and (not last or last.isspace())):
            yield last, END
        else:
            counts.n_empty += chunk_end is END
            if is_split:
                yield b"", DROP
        held, n_held, is_blank, is_split = [], 0, True, False


def split_prefix_len(text: bytes) -> tuple[int, bool]:
    """Return how much of ``text`` to split off, and whether that is safe: else it is in a word."""
    border = SAFE_SPLIT.match(text)
    return (border.end(), True) if border else (utf8_prefix_len(text), False)


def utf8_prefix_len(text: bytes) -> int:
    """Return the length of ``text`` without a character at its end that is not whole."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # begins a character
            width = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
