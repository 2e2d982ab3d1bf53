"""What prepare shows of its work: bars while it is at it, and at the end what was written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prepare.sources.source import Progress

CUTS = {  # of meta.json's chats
    "n_cut": "conversations longer than the context: cut between turns",
    "n_answers_cut": "answers longer than the context: cut off, without a learned end",
    "n_no_room": "questions without room for an answer in the context: left out with it",
    "n_unwritable": "questions or answers of characters that the vocabulary lacks: left out",
    "n_unanswered": "messages before the first question or behind the last answer: left out",
    "n_unspoken": "lines before anybody speaks: left out",
}
MAX_LISTED = 10  # skipped files, sources and warnings named one by one; the rest is in meta.json


@contextmanager
def progress_bars(unit: str = "B") -> Iterator[Callable[[str, int], Progress]]:
    """Give each pass over the sources a bar in bytes on disk, with the time that is left.

    There is none where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda name, size_bytes: lambda n_bytes: None
        return
    from tqdm import tqdm

    with ExitStack() as shown:

        def new_progress(name: str, size_bytes: int) -> Progress:
            shown.close()  # that of the pass before
            bar = tqdm(
                desc=name, total=size_bytes or None, unit=unit, unit_scale=True, mininterval=0.5
            )
            return shown.enter_context(bar).update

        yield new_progress


def totals_table(meta: dict[str, Any], folder: Path) -> str:
    """Return documents, bytes and tokens by split, then everything that was left out and why."""
    lines = [f"{'split':<7}{'documents':>13}{'bytes':>17}{'tokens':>16}{'bytes/token':>13}"]
    rows = meta["splits"]
    total = {key: sum(row[key] for row in rows.values()) for key in rows["train"]}
    for name, row in [*rows.items(), ("all", total)]:
        ratio = f"{row['bytes'] / row['tokens']:.2f}" if row["tokens"] else "-"
        lines.append(
            f"{name:<7}{row['documents']:>13,}{row['bytes']:>17,}{row['tokens']:>16,}{ratio:>13}"
        )
    tokenizer, split = meta["tokenizer"], meta["split"]
    lines.append(
        f"{folder}: {meta['n_documents']:,} documents, split by {split['rule']}; vocabulary "
        f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids as {meta['dtype']}; "
        f"encoded by {meta['encoder']}."
    )
    lines += chats_lines(meta["chats"]) if "chats" in meta else []
    for count, what in [
        (meta["n_empty"], "documents without text, left out"),
        (meta["n_duplicates"], "documents equal to an earlier one (--dedup exact drops them)"),
        (meta["n_bad_bytes"], "documents with bytes that are no text"),
        (meta["n_with_nul"], "documents with NUL characters, kept"),
        (meta["n_crlf"], "files with CR LF or CR for line ends, now LF"),
        (meta["n_forced_cuts"], "cuts inside of words of millions of characters"),
        *((count, f"files read as {name}") for name, count in meta["encodings"].items()),
    ]:
        if count:
            noun, _, rest = what.partition(" ")
            lines.append(f"{count:,} {noun.removesuffix('s') if count == 1 else noun} {rest}.")
    for reason, count in meta["reasons"].items():
        names = [entry["name"] for entry in meta["skipped"] if entry["reason"] == reason]
        more = f" and {count - MAX_LISTED:,} more" if count > MAX_LISTED else ""
        lines.append(f"{count:,} skipped, {reason}: {', '.join(names[:MAX_LISTED])}{more}.")
    return "\n".join(lines)


def chats_lines(chats: dict[str, Any]) -> list[str]:
    """Return what conversations were found, how much of them is learned, and what was cut."""
    n_learned = sum(chats["learned"].values())
    shapes = ", ".join(f"{count:,} of the shape {name}" for name, count in chats["shapes"].items())
    lines = [
        f"Conversations: {shapes}; {chats.get('n_answers', 0):,} answers, {n_learned:,} tokens "
        f"learned; at most {chats['context']:,} tokens each."
    ]
    for key, what in CUTS.items():
        if count := chats.get(key, 0):
            noun, _, rest = what.partition(" ")
            lines.append(f"{count:,} {noun.removesuffix('s') if count == 1 else noun} {rest}.")
    if missing := chats["missing"]:
        most = sorted(missing, key=lambda c: (-missing[c], c))[:MAX_LISTED]
        lines.append(
            f"{sum(missing.values()):,} characters left out that the vocabulary lacks, of "
            f"{len(missing):,} kinds: {' '.join(map(repr, most))}."
        )
    return lines


def warning_lines(meta: dict[str, Any]) -> list[str]:
    """Return the first warnings of meta.json, and how many more it holds."""
    warnings: list[str] = meta["warnings"]
    more = f"{len(warnings) - MAX_LISTED:,} more warnings in meta.json."
    return warnings[:MAX_LISTED] + [more] * (len(warnings) > MAX_LISTED)
