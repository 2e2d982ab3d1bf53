"""Learning-rate schedule: linear warmup, then cosine decay to a floor, as a pure function.

Source: Brown et al. 2020, appendix B (arXiv:2005.14165).
"""

import math

from train.config import TrainConfig


def learning_rate_at(step: int, max_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of update ``step``, counted from 0, of ``max_steps``."""
    # a run shorter than ten warmups warms up for its first tenth
    warmup_steps = min(config.warmup_steps, max_steps // 10)
    if step < warmup_steps:
        # +1: at update 0 a rate of zero would waste a whole batch
        return config.learning_rate * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))  # 1 at the peak, 0 at the floor
    return config.lr_floor + cosine * (config.learning_rate - config.lr_floor)
