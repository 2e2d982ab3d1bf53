"""What prepare shows: progress over compressed bytes, the closing table, decoded documents."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import DataError
from common.tokenfile import SPLITS, DataFolder
from prepare.pipeline import Corpus
from prepare.sources import Progress

MAX_LISTED = 10  # skipped files and sources named one by one; the rest is in meta.json


@contextmanager
def progress_bars(corpus: Corpus) -> Iterator[Callable[[str], Progress]]:
    """Give each pass over the sources a bar in compressed bytes, with the time that is left."""
    total = sum(size or 0 for _, size in corpus.sizes())
    bars: list[tqdm[Any]] = []

    def new_progress(name: str) -> Progress:
        for bar in bars:
            bar.close()
        bars.append(
            tqdm(desc=f"{name:<6}", total=total or None, unit="B", unit_scale=True, mininterval=0.5)
        )
        return bars[-1].update

    try:
        yield new_progress
    finally:
        for bar in bars:
            bar.close()


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
        (meta["n_empty"], "empty documents left out"),
        (meta["n_bad_bytes"], "documents that were not UTF-8"),
        (meta["n_with_nul"], "documents with NUL characters, kept"),
    ]:
        if count:
            lines.append(f"{count:,} {what}.")
    for reason, count in Counter(entry["reason"] for entry in meta["skipped"]).items():
        names = [entry["name"] for entry in meta["skipped"] if entry["reason"] == reason]
        more = f" and {count - MAX_LISTED:,} more" if count > MAX_LISTED else ""
        lines.append(f"{count:,} skipped, {reason}: {', '.join(names[:MAX_LISTED])}{more}.")
    return "\n".join(lines)


def sources_table(meta: dict[str, Any]) -> str:
    """Return documents and tokens of each source, those with most tokens first."""
    by_tokens = sorted(meta["sources"], key=lambda s: -sum(s[split]["tokens"] for split in SPLITS))
    lines = [f"{'source':<50}{'documents':>13}{'tokens':>16}"]
    for source in by_tokens[:MAX_LISTED]:
        documents, tokens = (
            sum(source[split][key] for split in SPLITS) for key in ("documents", "tokens")
        )
        lines.append(f"{source['name'][-48:]:<50}{documents:>13,}{tokens:>16,}")
    if len(by_tokens) > MAX_LISTED:
        lines.append(f"and {len(by_tokens) - MAX_LISTED:,} more")
    return "\n".join(lines)


def first_documents(data: DataFolder, n_documents: int) -> Iterator[str]:
    """Yield the first documents, decoded, those of train before those of val."""
    tokenizer = data.tokenizer()
    for split in SPLITS:
        ids, bounds = data.tokens(split), data.document_bounds(split)
        n_shown = min(n_documents, len(bounds) - 1)
        for i in range(n_shown):
            shown = ids[bounds[i] : bounds[i + 1]]
            if (shown >= tokenizer.vocab_size).any():
                raise DataError(
                    f"{data.path / split}.bin: document {i} holds id {shown.max()}, but the "
                    f"vocabulary ends at {tokenizer.vocab_size - 1}. The file changed after it was "
                    "written: prepare it again."
                )
            text = tokenizer.decode_bytes(shown.tolist())
            heading = f"--- {split} document {i}: {bounds[i + 1] - bounds[i]:,} tokens ---"
            yield f"{heading}\n{text.decode('utf-8', 'replace')}"
        n_documents -= n_shown
