"""Runs as a figure: loss, learning rate, norm of the gradient and speed, run beside run.

    loss, train and val  |  learning rate
    norm of the gradient |  tokens a second

matplotlib is imported only to draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.errors import CheckpointError, ConfigError
from common.files import atomic_write
from common.run_dir import METRICS_NAME, read_metrics
from train.report.chart import Curve, chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X = Literal["steps", "tokens", "seconds"]
KEY_OF = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
PANELS = {
    "loss": "loss, nats a token (train thin, val bold)",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "tokens_per_second": "tokens a second",
}
SUFFIXES = (".png", ".svg")
SIZE_INCHES = (12.0, 8.0)
DOTS_PER_INCH = 120
CHART_LINES = 16  # with title and legend it fits a terminal of 24
STYLE = {
    "text.parse_math": False,  # a $ in the name of a run begins no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",  # text stays text, to be searched
}
Records = list[dict[str, Any]]


def read_run(run: Path) -> Records:
    """Return a run's records.

    Raises: CheckpointError when there are none, or one is damaged.
    """
    if not (records := read_metrics(run)):
        raise CheckpointError(
            f"{run / METRICS_NAME}: nothing is logged yet: wait for the first progress line."
        )
    return records


def curves(name: str, records: Records, key: str, x: X) -> list[Curve]:
    """Return a run's curves of ``key``, of loss two, through the records that have a value."""
    labels = {"loss": f"{name} train", "val_loss": f"{name} val"} if key == "loss" else {key: name}
    found = []
    for field, label in labels.items():
        points = [line for line in records if line.get(field) is not None]
        if points:
            xs = [float(line[KEY_OF[x]]) for line in points]
            found.append(Curve(label, xs, [float(line[field]) for line in points]))
    return found


def text_chart(runs: Sequence[Path], x: X, width: int) -> str:
    """Return the loss of the runs as lines of text."""
    losses = [curve for run in runs for curve in curves(run.name, read_run(run), "loss", x)]
    return chart(f"loss over {x}", losses, width, CHART_LINES)


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

    with style.context(["default", STYLE]):  # whatever a person's matplotlibrc says
        figure = make_figure(by_run, x)
        try:
            with atomic_write(path) as file:
                figure.savefig(file, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}).") from error


def make_figure(by_run: dict[str, Records], x: X) -> "Figure":
    """Return four panels over the same x, each run in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(x)
        for number, (name, records) in enumerate(by_run.items()):
            for curve in curves(name, records, key, x):
                is_val = curve.label == f"{name} val"
                axes.plot(
                    curve.x, curve.y, label=curve.label, color=f"C{number % 10}",
                    linewidth=2 if is_val else 0.8, markersize=4,
                    marker="o" if is_val or len(curve.x) == 1 else None,
                )  # fmt: skip
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if key == "tokens_per_second":
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure
