"""metrics.jsonl, one object a logged step, and the same numbers as lines on the terminal."""

import json
import os
from pathlib import Path
from typing import Any

from common.files import write_text
from common.metrics import METRICS_NAME, read_metrics
from train.monitoring.early_stopping import Losses


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Add one line; it is on disk when this returns."""
    with (run / METRICS_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_metrics(run: Path, step: int) -> None:
    """Forget what was logged at ``step`` and after, and that the run had ended."""
    kept = [
        {key: value for key, value in line.items() if key != "ended"}
        for line in read_metrics(run)
        if line["step"] < step
    ]
    write_text(run / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))


def read_history(run: Path) -> list[Losses]:
    """Return the evaluations so far."""
    return [
        Losses(line["train_loss"], line["val_loss"])
        for line in read_metrics(run)
        if "val_loss" in line
    ]


def progress_line(record: dict[str, Any], max_steps: int, eta_s: float) -> str:
    """Return the line shown each log interval; mfu where it is known, skipped where some were."""
    loss = "nan" if record["loss"] is None else f"{record['loss']:.4f}"
    mfu = f" | mfu {record['mfu']:.1%}" if "mfu" in record else ""
    skipped = f" | skipped {record['skipped_steps']:,}" if record["skipped_steps"] else ""
    return (
        f"step {record['step']:,}/{max_steps:,} | loss {loss} | lr {record['lr']:.1e} | "
        f"{record['tokens_per_second']:,.0f} tok/s{mfu}{skipped} | eta {duration(eta_s)}"
    )


def evaluation_line(record: dict[str, Any], max_steps: int, *, best: bool) -> str:
    """Return the line shown at each evaluation."""
    return (
        f"eval {record['step']:,}/{max_steps:,} | train loss {record['train_loss']:.4f} "
        f"({record['train_bpb']:.3f} bits/byte) | val loss {record['val_loss']:.4f} "
        f"({record['val_bpb']:.3f} bits/byte)" + (" | best so far" if best else "")
    )


def duration(seconds: float) -> str:
    """Return a time as people say it: 42s, 3m 05s, 2h 10m."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
