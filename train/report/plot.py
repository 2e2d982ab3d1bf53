"""Curves of runs, run beside run: a figure of four panels, or the loss as lines of text.

matplotlib or plotext is imported only to draw.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError, ConfigError
from common.files import atomic_write
from common.run_dir import CONFIG_NAME, METRICS_NAME, read_json, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY_OF = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}  # of x in a record
PANELS = {
    "loss": "loss, {unit} (train thin, val bold)",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "tokens_per_second": "tokens a second",
}
SIZE_INCHES = (12.0, 8.0)
DOTS_PER_INCH = 120
STYLE = {
    "text.parse_math": False,  # a $ in the name of a run begins no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",  # text stays text, to be searched
}
CHART_LINES = 22  # fits a terminal of 24
MARKERS = "*+ox#@%&"
NATS, BITS = "nats a token", "bits a byte"
Records = list[dict[str, Any]]
Curves = dict[str, list[tuple[float, float]]]  # by label the points, in the order of the steps


def read_run(run: Path) -> Records:
    """Return a run's records; raise CheckpointError where there are none, or one is damaged."""
    if not (records := read_metrics(run)):
        raise CheckpointError(
            f"{run / METRICS_NAME}: nothing is logged yet: wait for the first progress line."
        )
    return records


def read_runs(runs: Sequence[Path]) -> tuple[dict[str, Records], str]:
    """Return the records of each run by its name, and the unit of their losses.

    Nats a token; where vocabularies differ a token stands for more text in one run than in another:
    bits a byte.
    """
    by_run = {run.name: read_run(run) for run in runs}
    configs = [read_json(run / CONFIG_NAME) for run in runs]
    sizes = {config["model"].get("vocab_size") for config in configs}
    hashes = {config.get("vocabulary_sha256") for config in configs} - {None}
    if max(len(sizes), len(hashes)) < 2:
        return by_run, NATS
    return {run.name: in_bits(run, by_run[run.name]) for run in runs}, BITS


def in_bits(run: Path, records: Records) -> Records:
    """Return records whose losses are in bits a byte; raise CheckpointError before there are any.

    Each step's loss by what the evaluations make of theirs: they score the same text each time.
    """
    evaluated = next((r for r in records if r.get("train_loss")), None)
    if evaluated is None:
        raise CheckpointError(
            f"{run / METRICS_NAME}: holds no evaluation yet, which tells bits a byte: these runs "
            "have different vocabularies, and their losses a token do not compare. Wait for the "
            "first evaluation, or plot it alone."
        )
    bits = evaluated["train_bpb"] / evaluated["train_loss"]
    return [
        r | {"loss": None if r["loss"] is None else bits * r["loss"], "val_loss": r.get("val_bpb")}
        for r in records
    ]


def curves_of(name: str, records: Records, key: str, x: str) -> Curves:
    """Return a run's curves of ``key``, of loss two, through the records that have a value."""
    labels = {"loss": f"{name} train", "val_loss": f"{name} val"} if key == "loss" else {key: name}
    curves = {
        label: [(float(r[KEY_OF[x]]), float(r[field])) for r in records if r.get(field) is not None]
        for field, label in labels.items()
    }
    return {label: points for label, points in curves.items() if points}


def text_chart(runs: Sequence[Path], x: str, width: int) -> str:
    """Return the loss of the runs as a chart of text, ``width`` columns wide."""
    by_run, unit = read_runs(runs)
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, CHART_LINES)
    plotext.title(f"loss over {x}" if unit == NATS else f"loss, {unit}, over {x}")
    curves = [curves_of(name, records, "loss", x) for name, records in by_run.items()]
    labelled = [curve for each in curves for curve in each.items()]
    for marker, (label, points) in zip(cycle(MARKERS), labelled, strict=False):
        plotext.plot(*zip(*points, strict=True), label=label, marker=marker)
    return str(plotext.uncolorize(plotext.build())).rstrip()


def draw(runs: Sequence[Path], x: str, path: Path) -> None:
    """Draw runs into a file, of the format that its suffix names."""
    by_run, unit = read_runs(runs)
    from matplotlib import style

    with style.context(["default", STYLE]):  # whatever a person's matplotlibrc says
        figure = make_figure(by_run, x, unit)
        try:
            with atomic_write(path) as file:
                figure.savefig(file, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
        except (OSError, ValueError) as error:  # by the disk; a format that matplotlib has not
            raise ConfigError(f"{path}: cannot be drawn ({error}). Name a .png or .svg.") from error


def make_figure(by_run: dict[str, Records], x: str, unit: str = NATS) -> "Figure":
    """Return four panels over the same x, each run in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set_title(title.format(unit=unit), fontsize="medium")
        axes.set_xlabel(x)
        for number, (name, records) in enumerate(by_run.items()):
            for label, points in curves_of(name, records, key, x).items():
                is_val = label == f"{name} val"
                axes.plot(
                    *zip(*points, strict=True), label=label, color=f"C{number % 10}",
                    linewidth=2 if is_val else 0.8, markersize=4,
                    marker="o" if is_val or len(points) == 1 else None,
                )  # fmt: skip
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if key == "tokens_per_second":
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure
