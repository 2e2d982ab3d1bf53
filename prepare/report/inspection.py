"""What is in a data folder: in tables, and in its first texts.

    train.idx, val.idx -> how long documents are
    train.bin, val.bin -> how often each id occurs
    meta.json          -> tokens by source (cli.py: counts by split, what was left out)

Memory does not grow with the ids: they are counted in blocks, and of a long document only the
beginning is decoded.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dataset import SPLITS, DataFolder, Split
from common.tokenizer import Tokenizer

MAX_LISTED = 10  # sources, and tokens of either kind
BLOCK_TOKENS = 1 << 20  # counted at a time: 8 MiB as the int64 that bincount makes of them
WIDTH = 80  # columns
N_BINS = 31  # of lengths: an .idx holds none of 2**31 or more
SHOWN_CHARACTERS = 2_000  # of a document: about a page
TOKEN_CHARACTERS = 34  # of a token: what 80 columns leave for it


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a split are, in tokens; the end-of-text id counts."""

    n_by_bin: npt.NDArray[np.int64]  # (N_BINS,): documents of 2**i to 2**(i + 1) - 1 tokens
    median: float  # 0 without documents, as is longest
    longest: int


@dataclass(frozen=True)
class Inspection:
    """The numbers of a data folder."""

    data: DataFolder
    tokenizer: Tokenizer
    lengths: dict[Split, Lengths]
    n_by_id: npt.NDArray[np.int64]  # (vocab_size,): how often each id occurs, in both splits

    def most_frequent(self) -> list[int]:
        """Return the ids that occur most, at most MAX_LISTED, the most frequent first."""
        order = np.argsort(-self.n_by_id, kind="stable")[:MAX_LISTED]
        return [int(i) for i in order if self.n_by_id[i]]

    def longest(self) -> list[int]:
        """Return the ids of most bytes among those that occur, the longest first."""
        token_bytes = self.tokenizer.token_bytes
        occurring = (int(i) for i in np.flatnonzero(self.n_by_id) if token_bytes[i])
        return nlargest(MAX_LISTED, occurring, key=lambda i: len(token_bytes[i]))


def inspect_data(data: DataFolder) -> Inspection:
    """Count a data folder that was verified, reading each of its ids once."""
    tokenizer = data.tokenizer()
    n_by_id = np.zeros(tokenizer.vocab_size, np.int64)
    lengths = {}
    for split in SPLITS:
        n_tokens = np.diff(data.document_bounds(split))
        exponents = np.frexp(n_tokens)[1] - 1  # floor of log2, exact as no logarithm is
        median = float(np.median(n_tokens)) if len(n_tokens) else 0
        n_by_bin = np.bincount(exponents, minlength=N_BINS)
        lengths[split] = Lengths(n_by_bin, median, int(n_tokens.max(initial=0)))
        for ids in data.blocks(split, BLOCK_TOKENS):
            n_by_id += np.bincount(ids, minlength=len(n_by_id))
    return Inspection(data, tokenizer, lengths, n_by_id)


def by_tokens(meta: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Return each source's name, documents, bytes and tokens, those with most tokens first.

    Where there are many, the last stands for those that meta.json counts together.
    """
    sources = [
        (s["name"], {key: sum(s[split][key] for split in SPLITS) for key in s["train"]})
        for s in meta["sources"]
    ]
    n_alone = sum("n_sources" not in s for s in meta["sources"])
    return sorted(sources[:n_alone], key=lambda s: -s[1]["tokens"]) + sources[n_alone:]


def bins(inspection: Inspection) -> range:
    """Return the bins of lengths from the first to the last that hold documents."""
    occupied = np.flatnonzero(sum(lengths.n_by_bin for lengths in inspection.lengths.values()))
    return range(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else range(0)


def tables(inspection: Inspection) -> str:
    """Return everything that was counted as text of WIDTH columns."""
    n_occurring = np.count_nonzero(inspection.n_by_id)
    parts = [
        _sources_table(inspection.data.meta),
        _lengths_table(inspection),
        _tokens_table(inspection, "most frequent tokens", inspection.most_frequent()),
        _tokens_table(inspection, "longest tokens that occur", inspection.longest()),
        [f"{n_occurring:,} of {inspection.tokenizer.vocab_size:,} ids occur."],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _sources_table(meta: dict[str, Any]) -> Iterator[str]:
    sources = by_tokens(meta)
    yield f"{'documents':>13}{'tokens':>17}  source"
    for name, counts in sources[:MAX_LISTED]:
        yield f"{counts['documents']:>13,}{counts['tokens']:>17,}  {name[-48:]}"
    if len(sources) > MAX_LISTED:
        n_sources = sum(s.get("n_sources", 1) for s in meta["sources"])
        yield f"{'':>32}and {n_sources - MAX_LISTED:,} more"


def _lengths_table(inspection: Inspection) -> Iterator[str]:
    """Yield the histogram of lengths: a row for each power of two, a bar for both splits."""
    train, val = (inspection.lengths[split] for split in SPLITS)
    n_by_bin = train.n_by_bin + val.n_by_bin
    yield (header := f"{'tokens in a document':>23}{'train':>13}{'val':>13}")
    full = WIDTH - len(header) - 2
    for i in bins(inspection):
        label = f"{1 << i:,}-{(2 << i) - 1:,}" if i else "1"
        bar = "#" * -(-full * int(n_by_bin[i]) // int(n_by_bin.max()))  # rounded up: 1 is seen
        yield f"{label:>23}{train.n_by_bin[i]:>13,}{val.n_by_bin[i]:>13,}  {bar}".rstrip()
    for name in ("median", "longest"):
        counts = [getattr(lengths, name) for lengths in (train, val)]
        yield f"{name:>23}" + "".join(f"{f'{n:,.0f}' if n else '-':>13}" for n in counts)


def _tokens_table(inspection: Inspection, title: str, ids: list[int]) -> Iterator[str]:
    # the token comes last: nobody knows how many columns a terminal gives its characters
    yield f"{'id':>8}{'count':>16}{'share':>9}{'bytes':>7}  {title}"
    for i in ids:
        count, share = inspection.n_by_id[i], inspection.n_by_id[i] / inspection.n_by_id.sum()
        n_bytes = len(inspection.tokenizer.token_bytes[i])
        yield f"{i:>8}{count:>16,}{share:>9.2%}{n_bytes:>7}  {_readable(inspection.tokenizer, i)}"


def _readable(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as Python writes text, or bytes where it is none; a special one by name."""
    for name, i in tokenizer.special_tokens.items():
        if i == token_id:
            return name
    token = tokenizer.token_bytes[token_id]
    try:
        shown = repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        shown = repr(token)
    return shown if len(shown) <= TOKEN_CHARACTERS else shown[:TOKEN_CHARACTERS] + "..."


def first_documents(data: DataFolder, n_documents: int) -> Iterator[str]:
    """Yield the first documents, decoded, train's before val's; of each some SHOWN_CHARACTERS."""
    tokenizer = data.tokenizer()
    for split in SPLITS:
        ids, bounds = data.tokens(split), data.document_bounds(split)
        for i, (start, end) in enumerate(pairwise(bounds[: n_documents + 1].tolist())):
            # without its end-of-text id; a character has at most 4 bytes, a token at least one
            head = ids[start : min(end - 1, start + 4 * SHOWN_CHARACTERS)]
            text, n_decoded = _beginning(head.tolist(), tokenizer)
            n_more = end - 1 - start - n_decoded
            more = f"\n[... {n_more:,} more tokens]" if n_more else ""
            yield f"--- {split} document {i}: {end - start:,} tokens ---\n{text}{more}"
        n_documents = max(0, n_documents - len(bounds) + 1)


def _beginning(ids: list[int], tokenizer: Tokenizer) -> tuple[str, int]:
    """Return the text of whole tokens up to SHOWN_CHARACTERS, and how many tokens it took."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for n_decoded, i in enumerate(ids):
        if len(text) >= SHOWN_CHARACTERS:
            return text, n_decoded
        text += decoder.decode(tokenizer.token_bytes[i])
    return text + decoder.decode(b"", final=True), len(ids)
