"""What prepare shows: progress over bytes on disk, the closing table."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.dataset import SPLITS
from prepare.sources.discover import Progress

MAX_LISTED = 10  # skipped files and sources named one by one; the rest is in meta.json


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Progress]]:
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
                desc=name, total=size_bytes or None, unit="B", unit_scale=True, mininterval=0.5
            )
            return shown.enter_context(bar).update

        yield new_progress


def totals_table(meta: dict[str, Any], folder: Path) -> str:
    """Return documents, bytes and tokens by split, then everything that was left out and why."""
    lines = [f"{'split':<7}{'documents':>13}{'bytes':>17}{'tokens':>16}{'bytes/token':>13}"]
    rows = {split: meta["splits"][split] for split in SPLITS}
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
    for count, what in [
        (meta["n_empty"], "documents without text, left out"),
        (meta["n_duplicates"], "documents equal to an earlier one (--dedup exact drops them)"),
        (meta["n_bad_bytes"], "documents with bytes that are no text"),
        (meta["n_with_nul"], "documents with NUL characters, kept"),
        (meta["n_crlf"], "files with CR LF for line ends, now LF"),
        (meta["n_forced_cuts"], "cuts inside of words of millions of characters"),
        *((count, f"files read as {name}") for name, count in meta["encodings"].items()),
    ]:
        if count:
            noun, _, rest = what.partition(" ")
            lines.append(f"{count:,} {noun.removesuffix('s') if count == 1 else noun} {rest}.")
    lines += meta["warnings"][:MAX_LISTED]
    for reason, count in meta["reasons"].items():
        names = [entry["name"] for entry in meta["skipped"] if entry["reason"] == reason]
        more = f" and {count - MAX_LISTED:,} more" if count > MAX_LISTED else ""
        lines.append(f"{count:,} skipped, {reason}: {', '.join(names[:MAX_LISTED])}{more}.")
    return "\n".join(lines)
