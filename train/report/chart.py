"""Curves as lines of text, for a terminal or a pipe.

4 |*
  |  *
  |   + +
1 |     **
  +-------
   0     8
   * train  + val
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

MARKERS = "*+ox#@%&"


@dataclass(frozen=True)
class Curve:
    """One line: its label and its points, in the order of the steps."""

    label: str
    x: list[float]
    y: list[float]


def chart(title: str, curves: Sequence[Curve], width: int, height: int) -> str:
    """Return a chart ``width`` columns wide, ``height`` of its lines for the curves.

    Where several points of a curve share a column their mean is drawn; later curves lie above.
    """
    all_x = [x for curve in curves for x in curve.x]
    all_y = [y for curve in curves for y in curve.y]
    if not all_x:
        return f"{title}: no values"
    first, last, low, high = min(all_x), max(all_x), min(all_y), max(all_y)
    margin = max(len(_number(high)), len(_number(low)))
    columns = max(2, width - margin - 2)
    grid = [[" "] * columns for _ in range(height)]
    for marker, curve in zip(cycle(MARKERS), curves, strict=False):
        by_column = defaultdict(list)
        for x, y in zip(curve.x, curve.y, strict=True):
            by_column[_cell(x - first, last - first, columns)].append(y)
        for column, ys in by_column.items():
            grid[_cell(high - fmean(ys), high - low, height)][column] = marker
    y_labels = [_number(high), *[""] * (height - 2), _number(low)]
    indent = " " * margin
    lines = [
        title,
        *(f"{label:>{margin}} |{''.join(row)}" for label, row in zip(y_labels, grid, strict=True)),
        f"{indent} +{'-' * columns}",
        f"{indent}  {_number(first)}{_number(last):>{columns - len(_number(first))}}",
        f"{indent}  " + "  ".join(f"{m} {c.label}" for m, c in zip(cycle(MARKERS), curves)),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(distance: float, length: float, n: int) -> int:
    """Return which of ``n`` cells is so far along the axis, 0 where it has no length."""
    return int(distance / length * (n - 1) + 0.5) if length > 0 else 0


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"
