"""Learning-rate schedule as a pure function: linear warmup, then from the peak to a floor.

cosine     half a wave               Brown et al. 2020, appendix B (arXiv:2005.14165)
linear     straight down             Defazio et al. 2023 (arXiv:2310.07831)
wsd        flat, then straight down  Hu et al. 2024, section 4 (arXiv:2404.06395)
constant   at the peak to the end
"""

import math
from collections.abc import Sequence

from train.config import TrainConfig


def position(step: int, max_steps: int, decisions: Sequence[Sequence[int]]) -> float:
    """Return where update ``step`` is in a schedule of ``max_steps``, by the decisions before it.

    Each one, (step, new max_steps), spreads what is left of the schedule then over the steps left:
    the position rises with each of them, and after the last it is ``max_steps``.
    """
    at, left, end = 0, float(max_steps), max_steps  # of the schedule after step ``at``
    for decided_at, new_end in decisions:
        left *= (end - decided_at) / (end - at)
        at, end = decided_at, new_end
    return max_steps - left * (end - step) / (end - at) if decisions else step


def learning_rate_at(step: float, max_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of update ``step``, counted from 0, of ``max_steps``."""
    # a run shorter than ten warmups warms up for its first tenth
    warmup_steps = min(config.warmup_steps, max_steps // 10)
    if step < warmup_steps:
        # +1: at update 0 a rate of zero would waste a whole batch
        return config.base_lr * (min(step, warmup_steps - 1) + 1) / warmup_steps
    if config.schedule == "constant":
        return config.base_lr
    first = warmup_steps  # where it begins to fall
    if config.schedule == "wsd":
        first = max(warmup_steps, max_steps - math.ceil(config.decay_share * max_steps))
    progress = min(1.0, max(0, step - first) / max(1, max_steps - first))
    share = 1.0 - progress  # of the way from the floor to the peak
    if config.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr_floor + share * (config.base_lr - config.lr_floor)
