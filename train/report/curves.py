"""metrics.jsonl as curves: what a picture or a chart draws, without torch or matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import CheckpointError
from common.metrics import METRICS_NAME, read_metrics

X = Literal["steps", "tokens", "seconds"]
KEY_OF = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}


@dataclass(frozen=True)
class Curve:
    """One line: its name and its points, in the order of the steps."""

    name: str
    x: list[float]
    y: list[float]


def read_run(run: Path) -> list[dict[str, Any]]:
    """Return a run's records.

    Raises: CheckpointError when there are none, or one is damaged.
    """
    records = read_metrics(run)
    if not records:
        raise CheckpointError(
            f"{run / METRICS_NAME}: nothing is logged yet: wait for the first progress line."
        )
    return records


def curve(records: Sequence[dict[str, Any]], key: str, x: X, name: str) -> Curve:
    """Return the values of ``key`` where there are any: a skipped update has no loss."""
    there = [line for line in records if line.get(key) is not None]
    return Curve(name, [float(line[KEY_OF[x]]) for line in there], [float(v[key]) for v in there])
