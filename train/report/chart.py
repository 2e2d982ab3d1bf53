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
from statistics import fmean

from train.report.curves import Curve

MARKS = "*+ox#@%&"


def chart(title: str, curves: Sequence[Curve], width: int, height: int) -> str:
    """Return a chart ``width`` columns wide, ``height`` of its lines for the curves.

    Where several points of a curve share a column their mean is drawn; later curves lie above.
    """
    every_x = [x for curve in curves for x in curve.x]
    every_y = [y for curve in curves for y in curve.y]
    if not every_x:
        return f"{title}: no values"
    low, high = min(every_y), max(every_y)
    labels = [_number(high), _number(low)]
    margin = max(map(len, labels))
    marked = list(zip(_marks(curves), curves, strict=True))
    columns = max(2, width - margin - 2)
    grid = [[" "] * columns for _ in range(height)]
    for mark, curve in marked:
        for column, y in _by_column(curve, min(every_x), max(every_x), columns).items():
            grid[_place(high - y, high - low, height)][column] = mark
    sides = [labels[0], *[""] * (height - 2), labels[1]]
    lines = [f"{side:>{margin}} |{''.join(row)}" for side, row in zip(sides, grid, strict=True)]
    ends = _number(min(every_x)), _number(max(every_x))
    below = " " * margin
    return "\n".join(
        line.rstrip()
        for line in [
            title,
            *lines,
            f"{below} +{'-' * columns}",
            f"{below}  {ends[0]}{ends[1]:>{columns - len(ends[0])}}",
            f"{below}  " + "  ".join(f"{m} {c.name}" for m, c in marked),
        ]
    )


def _marks(curves: Sequence[Curve]) -> list[str]:
    return [MARKS[number % len(MARKS)] for number in range(len(curves))]


def _by_column(curve: Curve, first: float, last: float, columns: int) -> dict[int, float]:
    values = defaultdict(list)
    for x, y in zip(curve.x, curve.y, strict=True):
        values[_place(x - first, last - first, columns)].append(y)
    return {column: fmean(ys) for column, ys in values.items()}


def _place(distance: float, whole: float, n: int) -> int:
    """Return which of ``n`` places is so far along the whole, 0 where it has no length."""
    return int(distance / whole * (n - 1) + 0.5) if whole > 0 else 0


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"
