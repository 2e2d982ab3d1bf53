"""A document as it streams by: in pieces, so that none is ever too long for the memory.

    (text, MORE) (text, MORE) (text, END)      one long document
    (text, END)                                one as short as most are
    (text, MORE) (b"", DROP)                   one that turned out to be none: forget its pieces

``rechunk`` makes pieces that can be encoded apart from one another: their ids, one after another, are
those of the whole document.
"""

import re
from collections.abc import Generator, Iterator
from enum import Enum
from typing import TypeAlias

from prepare.stats import Stats

MAX_CHUNK_BYTES = 4 << 20  # small beside any memory; hardly a document is longer

ChunkEnd = Enum("ChunkEnd", ["MORE", "END", "DROP"])
MORE, END, DROP = ChunkEnd.MORE, ChunkEnd.END, ChunkEnd.DROP
Chunk: TypeAlias = tuple[bytes, ChunkEnd]  # valid UTF-8 by itself, and what comes after it

# Where no word of GPT-2's pattern, nor of cl100k's and o200k's, goes on: cut there, both sides have
# the words of the whole. All three end a word at the space behind what is no space, and at what
# follows a letter, unless that is a letter, a combining mark, or the apostrophe of a contraction.
# Bytes can be told apart only where all characters of a range are alike, so these are not all such
# places, only enough of them in any script.
SAFE_SPLIT = re.compile(
    rb"""(?s:.*)  # greedy: the last one is found first
    (?=[\ \n\xe3\xef])  # for speed: one of these follows every border
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


def rechunk(pieces: Iterator[Chunk], stats: Stats) -> Generator[Chunk]:
    """Cut longer pieces to MAX_CHUNK_BYTES at borders between words, and join shorter ones.

    Documents that are blank throughout are dropped and counted. A run of MAX_CHUNK_BYTES without a
    border is cut inside, and counted: only there can the ids be others than those of the whole.
    """
    held: list[bytes] = []
    n_held, blank, begun = 0, True, False
    for text, chunk_end in pieces:
        if (
            chunk_end is END and not held and len(text) <= MAX_CHUNK_BYTES and not begun
        ):  # as most are
            if text and not text.isspace():
                yield text, END
            else:
                stats.n_empty += 1
            continue
        held.append(text)
        n_held += len(text)
        if n_held > MAX_CHUNK_BYTES and chunk_end is not DROP:
            whole, start = b"".join(held), 0
            while len(whole) - start > MAX_CHUNK_BYTES:
                part = whole[start : start + MAX_CHUNK_BYTES]
                border = SAFE_SPLIT.match(part)
                part = part[: border.end() if border else utf8_prefix_len(part)]
                stats.n_forced_cuts += border is None
                blank = blank and part.isspace()
                yield part, MORE
                start += len(part)
                begun = True
            held, n_held = [whole[start:]], len(whole) - start
        if chunk_end is MORE:
            continue
        last = b"".join(held)
        if chunk_end is END and not (blank and (not last or last.isspace())):
            yield last, END
        else:
            stats.n_empty += chunk_end is END
            if begun:
                yield b"", DROP
        held, n_held, blank, begun = [], 0, True, False


def utf8_prefix_len(text: bytes) -> int:
    """Return the length of ``text`` without a character at its end that is not whole."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # begins a character
            width = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
