"""How far and how fast a run is: metrics.jsonl, the same as terminal lines, ETA and MFU.

Model FLOPs utilization is the arithmetic that a network needs over what its GPU can do.

Source: Chowdhery et al. 2022, appendix B (arXiv:2204.02311): six operations a matrix weight and
token, and attention's twelve a layer, channel and token of context, not halved for its causality.
Weights beside which adapters learn have no gradient: four.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.device import Device
from common.files import flush_to_disk, naming, write_all, write_text
from common.models.gpt import GPT
from common.run_dir import METRICS_NAME, read_metrics

# 10^12 operations a second of dense 16-bit matrix products summed in float32, from NVIDIA's data
# sheets and, for GeForce, the architecture papers. bfloat16; float16 where a GPU lacks it (T4,
# V100). The first name that a device's contains counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class Update:
    """What one update did: loss in nats a token, norm of the gradient before clipping.

    Where either is not finite, the update was skipped: weights and optimizer are as they were.
    """

    loss: float
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether the weights were changed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass
class Progress:
    """How far a run is; saved in every checkpoint's state.json."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # since the run began, evaluations and saves included, stops not
    update_s: float = 0.0  # of them spent in updates
    eval_s: float = 0.0  # the last evaluation took this long, and the last save
    save_s: float = 0.0
    timed_step_s: float = 0.0  # what an update took about then; 0: not known yet
    best_val_loss: float | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the last update, as it is logged
    n_skipped: int = 0  # updates whose loss or gradient was not finite
    n_bad: int = 0  # of them in a row, until now
    good_step: int = 0  # the last step whose weights gave a finite loss and gradient
    lr_scale: float = 1.0  # halved at each return to an earlier checkpoint
    n_returns: int = 0
    decisions: list[list[int]] = field(default_factory=list)  # setup/replan.py

    @property
    def step_s(self) -> float:
        """What an update takes, on average; before the first nobody knows."""
        return self.update_s / self.step if self.step else math.inf

    def costs(self, step_s: float) -> tuple[float, float, float]:
        """Estimate the seconds of an update, an evaluation and a save, by those of an update now.

        A machine that became slower since they were timed is slower in all of them.
        """
        slower = step_s / (self.timed_step_s or step_s)
        return step_s, slower * self.eval_s, slower * self.save_s

    def add_evaluation(self, dt_s: float) -> None:
        """Count an evaluation."""
        self.eval_s, self.timed_step_s = dt_s, 0.0
        self.seconds += dt_s

    def add_save(self, dt_s: float) -> None:
        """Count a save."""
        self.save_s = dt_s
        self.seconds += dt_s

    def add_update(self, update: Update, lr: float, n_tokens: int, dt_s: float) -> None:
        """Count an update of ``n_tokens`` that took ``dt_s``, and make its record."""
        loss, grad_norm = update.loss, update.grad_norm
        if update.finite:
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
    """Append one line, or nothing; it is on disk when this returns."""
    line = json.dumps(record, allow_nan=False) + "\n"
    path = run / METRICS_NAME
    with naming(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            write_all(file, line.encode())
            flush_to_disk(file)
        except OSError:
            file.truncate(size)
            raise


def cut_metrics(run: Path, step: int) -> None:
    """Delete what was logged at ``step`` and after, and that the run had ended."""
    kept = [
        {key: value for key, value in line.items() if key != "ended"}
        for line in read_metrics(run)
        if line["step"] < step
    ]
    write_text(run / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))


def flops_per_token(model: GPT) -> int:
    """Return the floating-point operations of a forward and backward pass, a token."""
    c = model.config
    head = model.wte if c.tied_head else model.lm_head  # an embedding is looked up for nothing
    matrices = [head.weight, *(p for p in model.h.parameters() if p.dim() == 2)]
    of_matrices = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
    return of_matrices + 12 * c.n_layer * c.n_head * c.head_size * c.block_size


def mfu(model: GPT, device: Device, tokens_per_second: float, *, world_size: int) -> float | None:
    """Return the share of the GPUs' 16-bit peak that training uses; None where it is not known.

    The tokens are those of all processes, each on a GPU like this one.
    """
    if device.torch_device.type != "cuda" or device.dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device.torch_device)
    peaks = [1e12 * peak for known, peak in PEAK_TFLOPS.items() if known in name]
    needed = flops_per_token(model) * tokens_per_second
    return needed / (world_size * peaks[0]) if peaks else None


def progress_line(record: dict[str, Any], max_steps: int, eta_s: float) -> str:
    """Return the line shown each log interval; mfu where it is known, skipped where some were."""
    loss = "nan" if record["loss"] is None else f"{record['loss']:.4f}"
    utilization = f" | mfu {record['mfu']:.1%}" if "mfu" in record else ""
    skipped = f" | skipped {record['skipped_steps']:,}" if record["skipped_steps"] else ""
    return (
        f"step {record['step']:,}/{max_steps:,} | loss {loss} | lr {record['lr']:.1e} | "
        f"{record['tokens_per_second']:,.0f} tok/s{utilization}{skipped} | eta {duration(eta_s)}"
    )


def evaluation_line(record: dict[str, Any], max_steps: int, *, best: bool) -> str:
    """Return the line shown at each evaluation."""
    preferred = ""
    if "val_accuracy" in record:
        preferred = f" | val margin {record['val_margin']:.3f}, {record['val_accuracy']:.0%} right"
    return (
        f"eval {record['step']:,}/{max_steps:,} | train loss {record['train_loss']:.4f} "
        f"({record['train_bpb']:.3f} bits/byte) | val loss {record['val_loss']:.4f} "
        f"({record['val_bpb']:.3f} bits/byte){preferred}" + (" | best so far" if best else "")
    )


def duration(seconds: float) -> str:
    """Format a time: 42s, 3m 05s, 2h 10m."""
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    h, m = divmod(minutes, 60)
    if h:
        return f"{h}h {m:02d}m"
    return f"{m}m {s:02d}s" if m else f"{s}s"
