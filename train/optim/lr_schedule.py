"""Learning-rate schedule as a pure function: linear warmup, then from the peak to a floor.

cosine     half a wave               Brown et al. 2020, appendix B (arXiv:2005.14165)
linear     straight down             Defazio et al. 2023 (arXiv:2310.07831)
wsd        flat, then straight down  Hu et al. 2024, section 4 (arXiv:2404.06395)
constant   at the peak to the end
"""

import math

from train.config import TrainConfig


def learning_rate_at(step: int, max_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of update ``step``, counted from 0, of ``max_steps``."""
    # a run shorter than ten warmups warms up for its first tenth
    warmup_steps = min(config.warmup_steps, max_steps // 10)
    if step < warmup_steps:
        # +1: at update 0 a rate of zero would waste a whole batch
        return config.base_lr * (step + 1) / warmup_steps
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
