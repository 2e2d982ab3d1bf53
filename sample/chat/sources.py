"""What /source says: an answer with the parts that stand in the training text, and where."""

import re
from collections.abc import Iterator

from common.tracing import MIN_IDS, Passage
from sample.text.sources import Sources
from sample.text.terminal_text import MARK, MARK_END, escape_controls

MOST_AROUND, MOST_WITHIN = 80, 240  # characters of a passage
# They turn the direction of what follows, which would be the rest of the line. Source: Unicode
# Standard Annex 9, table 3.
DIRECTIONS = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def describe_sources(text: str, sources: Sources) -> Iterator[str]:
    """Yield notices: the text with its spans marked and numbered, their share, their passages."""
    parts = sources.pieces(text)
    numbers = {span: i for i, span in enumerate(sorted({n for _, n in parts if n is not None}), 1)}
    yield "".join(
        _plain(piece) if span is None else f"{MARK}{_plain(piece)}{MARK_END}[{numbers[span]}]"
        for piece, span in parts
    )
    n, n_traced = sources.n_tokens, sources.n_traced
    pieces = f", in {len(sources.spans):,} pieces" if len(sources.spans) > 1 else ""
    rest = f"; the other {n - n_traced:,} were put together anew." if n > n_traced else "."
    if 0 < n < MIN_IDS:
        rest = f"; pieces of fewer than {MIN_IDS} are not looked for."
    share = f"{n_traced:,} of {n:,} tokens ({100 * n_traced // max(n, 1)}%)"
    yield f"\n{share} stand word for word in the training text{pieces}{rest}"
    for span, number in numbers.items():
        found = sources.spans[span]
        times = "once" if found.n_found == 1 else f"{found.n_found:,} times"
        yield f"\n[{number}] {found.n_tokens:,} tokens, {times} in the training text:"
        yield from map(_describe, found.passages)


def _describe(passage: Passage) -> str:
    name = " ".join(_plain(passage.name).split())
    line = "" if passage.line is None else f", line {passage.line:,}"
    before, text, after = (
        re.sub(r"\s+", " ", part) for part in (passage.before, passage.text, passage.after)
    )
    if len(before) > MOST_AROUND:
        before = "... " + before[-MOST_AROUND:]
    if len(text) > MOST_WITHIN:
        text = f"{text[: MOST_WITHIN // 2]} ... {text[-MOST_WITHIN // 2 :]}"
    if len(after) > MOST_AROUND:
        after = after[:MOST_AROUND] + " ..."
    return f"- {name}{line}: {_plain(before)}{MARK}{_plain(text)}{MARK_END}{_plain(after)}"


def _plain(text: str) -> str:
    """Return ``text`` with all that would change how other text is shown spelled out."""
    text = DIRECTIONS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return escape_controls(text.replace(MARK, "\ufffd").replace(MARK_END, "\ufffd"))
