"""When a run ends, and when it overfits: pure functions of its evaluations so far."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common.run_dir import read_metrics
from train.config import TrainConfig

# One rise may be chance and so may two; of three in a row, while train falls, few are.
OVERFITTING_EVALS = 3


class Losses(NamedTuple):
    """One evaluation: mean loss in nats a token on either split."""

    train: float
    val: float


def read_history(run: Path) -> list[Losses]:
    """Return the evaluations so far."""
    return [
        Losses(line["train_loss"], line["val_loss"])
        for line in read_metrics(run)
        if "val_loss" in line
    ]


def evals_since_best(history: Sequence[Losses]) -> int:
    """Return the number of evaluations since the lowest val loss, the first such one."""
    val = [losses.val for losses in history]
    return len(val) - 1 - val.index(min(val))


def reason_to_end(
    step: int, max_steps: int, history: Sequence[Losses], config: TrainConfig
) -> str | None:
    """Return why the run ends after the evaluation at ``step``, or None where it goes on."""
    val_loss = history[-1].val
    if config.target_loss is not None and val_loss <= config.target_loss:
        return f"val loss {val_loss:.4f} has reached --target-loss {config.target_loss:g}"
    if config.patience and evals_since_best(history) >= config.patience:
        return f"no better val loss in {evals_since_best(history)} evaluations (--patience)"
    return f"all {max_steps:,} steps are made" if step == max_steps else None


def overfitting_line(history: Sequence[Losses]) -> str | None:
    """Return the warning when a run begins to overfit, once each time it does."""
    pairs = [*pairwise(history)][::-1]
    diverges = [after.val > before.val and after.train < before.train for before, after in pairs]
    if [*diverges, False].index(False) != OVERFITTING_EVALS:
        return None
    first, last = history[-1 - OVERFITTING_EVALS], history[-1]
    return (
        f"overfitting: in {OVERFITTING_EVALS} evaluations val loss rose from {first.val:.4f} to "
        f"{last.val:.4f} while train loss fell from {first.train:.4f} to {last.train:.4f}: it "
        "memorizes its text. The best checkpoint is kept. More text helps, or --dropout 0.2; "
        "--patience 3 would stop here."
    )
