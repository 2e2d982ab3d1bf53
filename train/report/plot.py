"""Runs as a picture: loss, learning rate, norm of the gradient and speed, run beside run.

    loss, train and val  |  learning rate
    norm of the gradient |  tokens a second

matplotlib is imported only to draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.files import atomic_write
from train.report.chart import chart
from train.report.curves import Curve, X, curve, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
SIZE_INCHES = (12.0, 8.0)
DOTS_PER_INCH = 120
CHART_LINES = 16  # with title and legend it fits a terminal of 24
LOOKS = {
    "text.parse_math": False,  # a $ in the name of a run begins no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",  # text stays text, to be searched
}
Records = list[dict[str, Any]]


def text_chart(runs: Sequence[Path], x: X, width: int) -> str:
    """Return the loss of the runs as lines of text."""
    curves = [one for run in runs for one in loss_curves(run.name, read_run(run), x)]
    return chart(f"loss over {x}", curves, width, CHART_LINES)


def loss_curves(name: str, records: Records, x: X) -> list[Curve]:
    """Return a run's curves of loss: in training, where it is logged, and on val."""
    both = [
        curve(records, "loss", x, f"{name} train"),
        curve(records, "val_loss", x, f"{name} val"),
    ]
    return [one for one in both if one.x]


def draw(runs: Sequence[Path], x: X, path: Path) -> None:
    """Draw runs into a file, .png or .svg.

    Raises: ConfigError when the suffix is another or the file cannot be written; CheckpointError
    when a run's metrics are missing or damaged.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: ends in {path.suffix or 'no suffix'!r}, which is no kind of picture to draw: "
            "name a file that ends in .png or .svg."
        )
    by_run = {run.name: read_run(run) for run in runs}
    from matplotlib import style

    with style.context(["default", LOOKS]):  # whatever a person's matplotlibrc says
        figure = picture(by_run, x)
        try:
            with atomic_write(path) as file:
                figure.savefig(file, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}).") from error


def picture(by_run: dict[str, Records], x: X) -> "Figure":
    """Return four panels over the same x, each run in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (key, title) in zip(
        panels,
        [
            ("loss", "loss, nats a token (train thin, val bold)"),
            ("lr", "learning rate"),
            ("grad_norm", "norm of the gradient"),
            ("tokens_per_second", "tokens a second"),
        ],
        strict=True,
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(x)
        for number, (name, records) in enumerate(by_run.items()):
            _lines(axes, key, name, records, x, f"C{number % 10}")
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if key == "tokens_per_second":
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def _lines(axes: "Axes", key: str, name: str, records: Records, x: X, colour: str) -> None:
    curves = loss_curves(name, records, x) if key == "loss" else [curve(records, key, x, name)]
    for one in curves:
        is_val = one.name == f"{name} val"
        axes.plot(
            one.x, one.y, color=colour, label=one.name, linewidth=2 if is_val else 0.8,
            marker="o" if is_val or len(one.x) == 1 else None, markersize=4,
        )  # fmt: skip
