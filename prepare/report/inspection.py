"""What is in a data folder: in tables, in a picture, in its first texts.

    train.idx, val.idx -> how long documents are
    train.bin, val.bin -> how often each id occurs
    meta.json          -> tokens by source (cli.py: counts by split, what was left out)

Memory does not grow with the ids: they are counted in blocks, and of a long document only the
beginning is decoded. matplotlib, which is slow to start, is imported only to draw.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.dataset import SPLITS, DataFolder, Split
from common.errors import DataError
from common.files import atomic_write
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LISTED = 10  # sources, and tokens of either kind
BLOCK_TOKENS = 1 << 20  # counted at a time: 8 MiB as the int64 that bincount makes of them
WIDTH = 80  # columns
N_BINS = 31  # of lengths: an .idx holds none of 2**31 or more
SHOWN_CHARACTERS = 2_000  # of a document: about a page
TOKEN_CHARACTERS = 34  # of a token: what 80 columns leave for it
SUFFIXES = (".png", ".svg", ".pdf")  # of a picture
MAX_POINTS = 500  # of the curve of ranks: an .svg of 200,000 would be megabytes
MAX_TICKS = 7  # under the lengths: more labels of seven digits would touch
NAME_CHARACTERS = 28  # of a source: a sixth of the width
LOOKS = {
    "text.parse_math": False,  # a $ in the name of a file begins no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.15,  # inches around each panel
    "figure.constrained_layout.h_pad": 0.1,
}
COLOURS = {"train": "#3b6ea5", "val": "#e08a3c"}


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
        for start in range(0, data.n_tokens(split), BLOCK_TOKENS):
            # mapped anew for each block: what was read no longer counts as this process's memory
            ids = data.tokens(split)[start : start + BLOCK_TOKENS]
            n_by_id += np.bincount(ids, minlength=len(n_by_id))
    return Inspection(data, tokenizer, lengths, n_by_id)


def by_tokens(meta: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Return each source's name, documents, bytes and tokens, those with most tokens first."""
    sources = [
        (s["name"], {key: sum(s[split][key] for split in SPLITS) for key in s["train"]})
        for s in meta["sources"]
    ]
    return sorted(sources, key=lambda source: -source[1]["tokens"])


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
        yield f"{'':>32}and {len(sources) - MAX_LISTED:,} more"


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


def draw(inspection: Inspection, path: Path) -> None:
    """Draw an inspection into a .png, .svg or .pdf; raise DataError where that cannot be."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: ends in {path.suffix or 'no suffix'!r}, which is no kind of picture to draw. "
            "Name a file that ends in .png, .svg or .pdf."
        )
    from matplotlib import style

    try:  # the default style, whatever a person's matplotlibrc says
        with style.context(["default", LOOKS]), atomic_write(path) as file:
            picture(inspection).savefig(file, format=path.suffix.lower()[1:])
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error


def picture(inspection: Inspection) -> "Figure":
    """Return the four panels of an inspection."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=120, layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False)
    lengths, ranks = upper.subplots(1, 2)
    tokens, ratios = lower.subplots(1, 2, sharey=True)  # so the names stand there once
    folder, tokenizer = inspection.data.path.resolve().name, inspection.tokenizer
    vocabulary = f"vocabulary {tokenizer.name} of {tokenizer.vocab_size:,} ids"
    title = f"{folder}: {inspection.n_by_id.sum():,} tokens, {vocabulary}"
    figure.suptitle(_drawable(title))
    _draw_lengths(lengths, inspection)
    _draw_ranks(ranks, inspection)
    _draw_sources(tokens, ratios, inspection)
    return figure


def _draw_lengths(axes: "Axes", inspection: Inspection) -> None:
    """Draw the share of a split's documents in each bin: counts would hide val beside train."""
    drawn = bins(inspection)
    places = np.arange(len(drawn)) + 0.5
    for shift, split in zip((-0.2, 0.2), SPLITS, strict=True):
        n_by_bin = inspection.lengths[split].n_by_bin
        shares = 100 * n_by_bin[drawn.start : drawn.stop] / max(1, n_by_bin.sum())
        label = f"{split}: {n_by_bin.sum():,} documents"
        axes.bar(places + shift, shares, width=0.4, color=COLOURS[split], label=label)
    edges = range(0, len(drawn) + 1, -(-(len(drawn) + 1) // MAX_TICKS))
    axes.set_xticks(list(edges), [f"{1 << drawn.start + edge:,}" for edge in edges])
    axes.set(title="length of documents", xlabel="tokens, by powers of two")
    axes.set_ylabel("% of the split's documents")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])  # room for the legend above the highest bar
    axes.legend(loc="upper center", ncols=2, frameon=False)


def _draw_ranks(axes: "Axes", inspection: Inspection) -> None:
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    counts = np.sort(inspection.n_by_id[inspection.n_by_id > 0])[::-1]
    ranks = np.unique(np.geomspace(1, max(1, len(counts)), MAX_POINTS).round().astype(np.int64))
    ranks = ranks[ranks <= len(counts)]
    axes.plot(ranks, counts[ranks - 1], color=COLOURS["train"], marker=".", markersize=3)
    axes.set(xscale="log", yscale="log", title="frequency of tokens", xlabel="rank of the token")
    axes.set_ylabel("times it occurs")
    axes.set_xlim(left=0.8)  # so that the tick at 1 is there, whatever the numbers
    axes.set_ylim(bottom=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _draw_sources(tokens: "Axes", ratios: "Axes", inspection: Inspection) -> None:
    """Draw the largest sources from the top down, a bar of tokens and one of bytes per token."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    sources = by_tokens(inspection.data.meta)
    largest = sources[:MAX_LISTED]
    rows = np.arange(len(largest))
    names = [_drawable(name) for name, _ in largest]
    names = [n if len(n) <= NAME_CHARACTERS else "..." + n[3 - NAME_CHARACTERS :] for n in names]
    n_tokens = np.array([counts["tokens"] for _, counts in largest])
    n_bytes = np.array([counts["bytes"] for _, counts in largest])
    drawn = ((tokens, n_tokens, "{:,.0f}"), (ratios, n_bytes / np.maximum(1, n_tokens), "{:.2f}"))
    for axes, widths, label in drawn:
        bars = axes.barh(rows, widths, height=0.6, color=COLOURS["train"])
        axes.bar_label(bars, fmt=label, padding=4)
        axes.margins(x=0.5)  # room for the label of the longest bar
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    which = f", the largest {MAX_LISTED} of {len(sources):,}" if len(sources) > MAX_LISTED else ""
    tokens.set(title=f"tokens by source{which}", xlabel="tokens")
    ratios.set(title="bytes per token by source", xlabel="bytes per token")
    tokens.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    tokens.set_yticks(rows, names)
    tokens.set_ylim(max(len(largest), 3) - 0.5, -0.5)  # one source is no wall of colour


def _drawable(text: str) -> str:
    """Return a text in which characters that the font lacks are escaped, not drawn as boxes."""
    from matplotlib.font_manager import findfont, get_font

    drawn = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(
        c if ord(c) in drawn and c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
