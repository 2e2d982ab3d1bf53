"""A big file of JSON lines -> ranges of whole lines, so that several processes can read it.

Only such a file can be read from its middle: an archive has to be read from its beginning, and a
plain text is one document.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from prepare.archives.streams import HEAD_BYTES
from prepare.readers.jsonl import JSON_LINES_SUFFIXES

RANGE_BYTES = 64 << 20  # enough for what a task costs besides, and small enough to share out
BLOCK_BYTES = 1 << 16


def byte_ranges(path: Path) -> list[tuple[int, int]]:
    """Return ranges of about RANGE_BYTES that make up a file of JSON lines; none for other files."""
    if path.suffix not in JSON_LINES_SUFFIXES or path.stat().st_size < 2 * RANGE_BYTES:
        return []
    with path.open("rb") as file:
        first_line, end, _ = file.read(HEAD_BYTES).partition(b"\n")
        try:
            is_lines = bool(end) and isinstance(json.loads(first_line.decode("utf-8-sig")), dict)
        except (ValueError, RecursionError):
            is_lines = False  # packed, in another encoding, or over several lines
        if not is_lines:
            return []
        size = path.stat().st_size
        borders = [_line_from(file, position) for position in range(0, size, RANGE_BYTES)]
    return [span for span in pairwise([*borders, size]) if span[0] < span[1]]


def _line_from(file: BinaryIO, position: int) -> int:
    """Return where the first line begins that does not begin before ``position``."""
    if position == 0:
        return 0
    file.seek(position - 1)
    while block := file.read(BLOCK_BYTES):
        found = block.find(b"\n")
        if found >= 0:
            return file.tell() - len(block) + found + 1
    return file.tell()
