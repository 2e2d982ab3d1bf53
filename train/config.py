"""Settings of a training run: each one's type, default and meaning, once."""

from dataclasses import dataclass

from common.config import SEEDS_END, check_ranges, setting
from common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; stored in the run's config.json with every value filled in."""

    max_steps: int | None = setting(None, "Optimizer updates in all.", at_least=1)
    minutes: float | None = setting(
        None,
        "Train about this long instead: the speed is measured, then the steps are fixed.",
        at_least=0,
    )
    tokens_per_step: int = setting(16_384, "Tokens an update learns from.", at_least=1)
    batch_size: int = setting(
        0,
        "Rows of --block-size tokens at a time; 0: what suits the machine. It changes no result.",
        at_least=0,
    )
    learning_rate: float = setting(1e-3, "Peak of the learning rate.", at_least=0)
    min_lr: float | None = setting(
        None, "Its floor at the end.  [default: a tenth of the peak]", at_least=0
    )
    warmup_steps: int = setting(100, "Updates until the peak.", at_least=0)
    weight_decay: float = setting(0.1, "Decay of matrices; vectors have none.", at_least=0)
    beta1: float = setting(0.9, "AdamW's memory of the gradient.", at_least=0, below=1)
    beta2: float = setting(0.99, "AdamW's memory of its square.", at_least=0, below=1)
    grad_clip: float = setting(1.0, "Largest norm of the gradient; 0: no limit.", at_least=0)
    eval_interval: int = setting(
        0, "Updates between evaluations; 0: about ten in a run.", at_least=0
    )
    eval_tokens: int = setting(
        1_000_000,
        "Evaluate on all of val up to this size, beyond it on this many tokens.",
        at_least=1,
    )
    log_interval: int = setting(20, "Updates between progress lines.", at_least=1)
    save_interval: int = setting(
        0,
        "Updates between checkpoints; 0: each evaluation, and at least every five minutes.",
        at_least=0,
    )
    seed: int = setting(
        1337, "Of the weights, the order of the data, and dropout.", at_least=0, below=SEEDS_END
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_steps is not None and self.minutes is not None:
            raise ConfigError("--max-steps and --minutes are both given: one decides the length.")

    @property
    def lr_floor(self) -> float:
        """Where the schedule ends."""
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr
