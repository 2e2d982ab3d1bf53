"""How far a run is: what every checkpoint's state.json has of it, and the record of an update."""

import math
from dataclasses import dataclass, field
from typing import Any


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
