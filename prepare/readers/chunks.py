"""A document as it streams by: in pieces, so that none is ever too long for the memory.

    (text, MORE) (text, MORE) (text, END)      one long document
    (text, END)                                one as short as most are
    (text, MORE) (b"", DROP)                   one that turned out to be none: forget its pieces

``recut`` makes pieces that can be encoded apart from one another: their ids, one after another, are
those of the whole document.
"""

import re
from collections.abc import Generator, Iterator
from enum import Enum
from typing import TypeAlias

from prepare.stats import Findings

PIECE_BYTES = 4 << 20  # small beside any memory; hardly a document is longer

Fate = Enum("Fate", ["MORE", "END", "DROP"])
MORE, END, DROP = Fate.MORE, Fate.END, Fate.DROP
Piece: TypeAlias = tuple[bytes, Fate]  # valid UTF-8 by itself, and what comes after it

# Where no word of GPT-2's pattern, nor of cl100k's and o200k's, goes on: cut there, both sides have
# the words of the whole. All three end a word at the space behind what is no space, and at what
# follows a letter, unless that is a letter, a combining mark, or the apostrophe of a contraction.
# Bytes can be told apart only where all characters of a range are alike, so these are not all such
# places, only enough of them in any script.
LAST_BORDER = re.compile(
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


def recut(pieces: Iterator[Piece], findings: Findings) -> Generator[Piece]:
    """Cut longer pieces to PIECE_BYTES at borders between words, and join shorter ones.

    Documents that are blank throughout are dropped and counted. A run of PIECE_BYTES without a
    border is cut inside, and counted: only there can the ids be others than those of the whole.
    """
    held: list[bytes] = []
    n_held, blank, begun = 0, True, False
    for text, fate in pieces:
        if fate is END and not held and len(text) <= PIECE_BYTES and not begun:  # as most are
            if text and not text.isspace():
                yield text, END
            else:
                findings.n_empty += 1
            continue
        held.append(text)
        n_held += len(text)
        if n_held > PIECE_BYTES and fate is not DROP:
            whole, start = b"".join(held), 0
            while len(whole) - start > PIECE_BYTES:
                part = whole[start : start + PIECE_BYTES]
                border = LAST_BORDER.match(part)
                part = part[: border.end() if border else whole_characters(part)]
                findings.n_forced_cuts += border is None
                blank = blank and part.isspace()
                yield part, MORE
                start += len(part)
                begun = True
            held, n_held = [whole[start:]], len(whole) - start
        if fate is MORE:
            continue
        last = b"".join(held)
        if fate is END and not (blank and (not last or last.isspace())):
            yield last, END
        else:
            findings.n_empty += fate is END
            if begun:
                yield b"", DROP
        held, n_held, blank, begun = [], 0, True, False


def whole_characters(text: bytes) -> int:
    """Return the length of ``text`` without a character at its end that is not whole."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # begins a character
            width = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
