"""A data folder as a picture: lengths of documents, frequencies of tokens, the largest sources.

    documents by length, by split  |  how often each token occurs, by rank
    tokens by source               |  bytes per token by source

matplotlib is imported only to draw: it takes longer to start than all the rest of prepare.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.dataset import SPLITS
from common.errors import DataError
from common.files import atomic_write
from prepare.report.inspection import MAX_LISTED, Inspection, bins, by_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
SIZE_INCHES = (12.0, 8.0)
DOTS_PER_INCH = 120
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


def draw(inspection: Inspection, path: Path) -> None:
    """Draw an inspection into a .png, .svg or .pdf; raise DataError where that cannot be."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: ends in {path.suffix or 'no suffix'!r}, which is no kind of picture to draw. "
            "Name a file that ends in .png, .svg or .pdf."
        )
    from matplotlib import style

    with style.context(["default", LOOKS]):  # whatever a person's matplotlibrc says
        figure = picture(inspection)
        try:
            with atomic_write(path) as file:
                figure.savefig(file, format=path.suffix.lower()[1:])
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error


def picture(inspection: Inspection) -> "Figure":
    """Return the four panels of an inspection."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False)
    lengths, ranks = upper.subplots(1, 2)
    tokens, ratios = lower.subplots(1, 2, sharey=True)  # so the names stand there once
    title = (
        f"{inspection.data.path.resolve().name}: {inspection.n_by_id.sum():,} tokens, vocabulary "
        f"{inspection.tokenizer.name} of {inspection.tokenizer.vocab_size:,} ids"
    )
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
