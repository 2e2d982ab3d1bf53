"""Runs side by side: how large, how long, how good, and in which settings they differ."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open

from common.checkpoint import MODEL_NAME
from common.run_dir import CONFIG_NAME, read_json, read_metrics, read_pointer
from train.monitoring.metrics import duration

NO_VALUE = "-"
COLUMNS = ["run", "parameters", "tokens", "steps", "time", "val loss", "bits/byte", "tokens/s"]
MAX_WIDTH = 40  # characters of a setting's value


def compare(runs: Sequence[Path]) -> str:
    """Return the table of runs and, of two or more, the settings that are not the same in all.

    ``val loss`` and ``bits/byte`` are those of the evaluation with the lowest val loss;
    ``tokens/s`` is the median over what is logged. A run without metrics has dashes.
    """
    tables = [table([COLUMNS, *map(_row, runs)])]
    if differing := differing_settings(runs):
        tables.append(table([["differing", *(run.name for run in runs)], *differing]))
    return "\n\n".join(tables)


def differing_settings(runs: Sequence[Path]) -> list[list[str]]:
    """Return [setting, its value in each run] where the values differ."""
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [[name, *(each.get(name, NO_VALUE) for each in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _row(run: Path) -> list[str]:
    first, records = [run.name, _n_parameters(run)], read_metrics(run)
    if not records:
        return first + [NO_VALUE] * (len(COLUMNS) - len(first))
    evaluated = [line for line in records if line.get("val_loss") is not None]
    best = min(evaluated, key=lambda line: float(line["val_loss"]), default=None)
    losses = [f"{best[k]:.4f}" if best else NO_VALUE for k in ("val_loss", "val_bpb")]
    speed = median(line["tokens_per_second"] for line in records)
    tokens, steps, seconds = (records[-1][key] for key in ("tokens", "step", "seconds"))
    return [*first, f"{tokens:,}", f"{steps:,}", duration(seconds), *losses, f"{speed:,.0f}"]


def _n_parameters(run: Path) -> str:
    """Return how many numbers the newest checkpoint's weights are, without reading them."""
    path = (read_pointer(run, "latest") or run) / MODEL_NAME
    try:
        with safe_open(str(path), framework="numpy") as file:
            return f"{sum(prod(file.get_slice(name).get_shape()) for name in file.keys()):,}"  # noqa: SIM118
    except (OSError, SafetensorError):
        return NO_VALUE


def _settings(run: Path) -> dict[str, str]:
    config = read_json(run / CONFIG_NAME)
    settings = {name: config.get(name) for name in ("preset", "device", "init_from")}
    data = config.get("data", {}).get("sha256")  # of an imported run it is not known
    settings |= {"data": data and data[:12], **config["model"], **config["train"]}
    return {name: _shown(value) for name, value in settings.items()}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"  # 3e-4 doubled is 0.0006000000000000001
    return NO_VALUE if value is None else str(value)[:MAX_WIDTH]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, the first left-aligned and all others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'>' if number else '<'}{width}}}" for number, width in enumerate(widths))
    return "\n".join(line.format(*row).rstrip() for row in rows)
