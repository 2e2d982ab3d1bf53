"""Reading metrics.jsonl, one JSON object a logged step (no torch)."""

import json
from pathlib import Path
from typing import Any

from common.errors import CheckpointError

METRICS_NAME = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line cut short by a crash is left out.

    Raises: CheckpointError that names a line before it that is damaged.
    """
    path = run / METRICS_NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("it is no object with a step")
            records.append(record)
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: damaged ({error}). Delete that line."
            ) from error
    return records


def stop_reason(run: Path, step: int | None = None) -> str | None:
    """Return why a run is finished, in words, or None: it is not, or not after ``step``."""
    last: dict[str, Any] = next(reversed(read_metrics(run)), {})
    return last.get("ended") if step in (None, last.get("step")) else None
