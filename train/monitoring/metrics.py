"""metrics.jsonl, one record a logged step; the same numbers as terminal lines, and the ETA."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import write_text
from common.run_dir import METRICS_NAME, read_metrics


@dataclass
class Progress:
    """How far a run is; saved in every checkpoint's state.json."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # since the run began, evaluations and saves included, stops not
    update_s: float = 0.0  # of them spent in updates
    eval_s: float = 0.0  # the last evaluation took this long, and the last save
    save_s: float = 0.0
    best_val_loss: float | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the last update, as it is logged
    n_skipped: int = 0  # updates whose loss or gradient was not finite
    n_bad: int = 0  # of them in a row, until now
    good_step: int = 0  # the last step whose weights gave a finite loss and gradient
    lr_scale: float = 1.0  # halved at each return to an earlier checkpoint
    n_returns: int = 0

    def add_update(
        self, loss: float, grad_norm: float, lr: float, n_tokens: int, dt_s: float
    ) -> None:
        """Count an update of ``n_tokens`` that took ``dt_s``, and make its record."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.good_step, self.n_bad = self.step, 0
        else:
            self.n_skipped += 1
            self.n_bad += 1
        self.step += 1
        self.n_tokens += n_tokens
        self.seconds += dt_s
        self.update_s += dt_s
        self.record = {
            "step": self.step,
            "tokens": self.n_tokens,
            "seconds": round(self.seconds, 3),
            "loss": loss if math.isfinite(loss) else None,  # JSON knows no nan
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": round(n_tokens / dt_s, 1),
            "skipped_steps": self.n_skipped,
        }


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Append one line; it is on disk when this returns."""
    with (run / METRICS_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_metrics(run: Path, step: int) -> None:
    """Delete what was logged at ``step`` and after, and that the run had ended."""
    kept = [
        {key: value for key, value in line.items() if key != "ended"}
        for line in read_metrics(run)
        if line["step"] < step
    ]
    write_text(run / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))


def remaining_s(
    progress: Progress, step_s: float, max_steps: int, eval_interval: int, save_interval: int
) -> float:
    """Return the time to the end of a run, of its updates, evaluations and saves, in seconds."""
    done = progress.step - 1  # what follows this step is not done yet

    def n_left(interval: int) -> int:
        """Count its multiples after ``done`` up to the last step, which always counts."""
        return max_steps // interval - done // interval + (max_steps % interval != 0)

    n_evals = n_left(eval_interval)
    n_both = n_left(math.lcm(save_interval, eval_interval))
    n_saves = n_left(save_interval) + n_evals - n_both
    updates_s = step_s * (max_steps - progress.step)
    return updates_s + progress.eval_s * n_evals + progress.save_s * n_saves


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
    """Format a time: 42s, 3m 05s, 2h 10m."""
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    h, m = divmod(minutes, 60)
    if h:
        return f"{h}h {m:02d}m"
    return f"{m}m {s:02d}s" if m else f"{s}s"
