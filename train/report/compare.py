"""Runs side by side: how large, how long, how good, and in which settings they differ."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open

from common.checkpoint import MODEL_NAME
from common.metrics import read_metrics
from common.run_dir import CONFIG_NAME, read_json, read_pointer
from train.monitoring.metrics import duration

NOTHING = "-"
HEADS = ["run", "parameters", "tokens", "steps", "time", "val loss", "bits/byte", "tokens/s"]
WIDEST = 40  # characters of a setting's value


def compare(runs: Sequence[Path]) -> str:
    """Return the table of runs and, of two or more, the settings that are not the same in all.

    ``val loss`` and ``bits/byte`` are those of the evaluation with the lowest val loss;
    ``tokens/s`` is the median over what is logged. A run without metrics has dashes.
    """
    tables = [table([HEADS, *map(row, runs)])]
    if differing := differences(runs):
        tables.append(table([["differing", *(run.name for run in runs)], *differing]))
    return "\n\n".join(tables)


def row(run: Path) -> list[str]:
    """Return a run's line of the table."""
    records = read_metrics(run)
    if not records:
        return [run.name, n_parameters(run), *[NOTHING] * (len(HEADS) - 2)]
    scored = [line for line in records if line.get("val_loss") is not None]
    best = min(scored, key=lambda line: float(line["val_loss"]), default=None)
    last = records[-1]
    return [
        run.name,
        n_parameters(run),
        f"{last['tokens']:,}",
        f"{last['step']:,}",
        duration(last["seconds"]),
        NOTHING if best is None else f"{best['val_loss']:.4f}",
        NOTHING if best is None else f"{best['val_bpb']:.4f}",
        f"{median(line['tokens_per_second'] for line in records):,.0f}",
    ]


def n_parameters(run: Path) -> str:
    """Return how many numbers the newest checkpoint's weights are, without reading them."""
    latest = read_pointer(run, "latest")
    try:
        with safe_open(str((latest or run) / MODEL_NAME), framework="numpy") as file:
            return f"{sum(prod(file.get_slice(name).get_shape()) for name in file.keys()):,}"  # noqa: SIM118
    except (OSError, SafetensorError):
        return NOTHING


def differences(runs: Sequence[Path]) -> list[list[str]]:
    """Return [setting, its value in each run] where the values differ."""
    settings = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for each in settings for name in each))
    rows = [[name, *(each.get(name, NOTHING) for each in settings)] for name in names]
    return [line for line in rows if len(set(line[1:])) > 1]


def _settings(run: Path) -> dict[str, str]:
    config = read_json(run / CONFIG_NAME)
    named: dict[str, Any] = {
        "preset": config.get("preset"),
        "device": config.get("device"),
        "data": config.get("data", {}).get("sha256", "")[:12],
        "init_from": config.get("init_from"),
        **config.get("model", {}),
        **config.get("train", {}),
    }
    return {name: NOTHING if v is None else str(v)[:WIDEST] for name, v in named.items()}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, the first at the left and all others at the right."""
    widths = [max(len(each[column]) for each in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            value.ljust(width) if column == 0 else value.rjust(width)
            for column, (value, width) in enumerate(zip(each, widths, strict=True))
        ).rstrip()
        for each in rows
    )
