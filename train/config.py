"""Settings of a training run: each one's type, default and meaning, once."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from common.errors import ConfigError
from common.settings import SEEDS_END, check_ranges, from_dict, setting

# Settings of a network that its weights do not depend on.
FREE = {"dropout", "attn_dropout", "ngram_dropout", "attention"}
FREE_UNLESS_LEARNED = FREE | {"block_size"}  # positions have weights of their own where learned
LENGTHS = ("max_steps", "minutes", "tokens", "epochs")  # each of them sets the length of a run


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; stored in the run's config.json with every value filled in."""

    max_steps: int | None = setting(None, "Optimizer updates in all.", at_least=1)
    minutes: float | None = setting(
        None, "Train so long instead: its steps follow the clock.", at_least=0, below=1e7
    )
    tokens: int | None = setting(None, "Read this many tokens instead.", at_least=1, below=10**15)
    epochs: float | None = setting(None, "Read train so many times.", at_least=0, below=1e7)
    mix: float = setting(
        0.0, "Share of an update's rows that are text of the run it begins from.",
        at_least=0.0, below=1.0,
    )  # fmt: skip
    tokens_per_step: int = setting(16_384, "Tokens of an update.", at_least=1, below=10**10)
    batch_size: int = setting(
        0,
        "Rows at a time; auto or 0: as many as suit. It changes no result.",
        at_least=0,
        auto=True,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Of matrix products; auto: the fastest that the device has in hardware."
    )
    optimizer: Literal["muon", "adamw"] = setting(
        "adamw", "muon: hidden matrices by Muon, all else by AdamW; adamw: everything by AdamW."
    )
    learning_rate: float = setting(1e-3, "Peak of the learning rate.", at_least=0)
    matrix_lr: float | None = setting(
        None, "That of what Muon updates.  [default: --learning-rate]", at_least=0
    )
    table_lr: float | None = setting(
        None, "That of n-gram tables, by Adagrad.  [default: --learning-rate]", at_least=0
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = setting(
        "cosine", "How the rate falls from peak to floor; wsd: flat, then down; constant: never."
    )
    decay_share: float = setting(0.2, "Share of updates in which wsd decays.", at_least=0, below=1)
    min_lr: float | None = setting(None, "Its floor.  [default: a tenth of the peak]", at_least=0)
    warmup_steps: int = setting(100, "Updates of linear warmup.", at_least=0)
    momentum: float = setting(0.95, "Muon's momentum.", at_least=0, below=1)
    weight_decay: float = setting(0.1, "Decay of matrices; vectors have none.", at_least=0)
    beta1: float = setting(0.9, "AdamW's decay of the first moment.", at_least=0, below=1)
    beta2: float = setting(0.99, "AdamW's decay of the second moment.", at_least=0, below=1)
    grad_clip: float = setting(1.0, "Largest norm of the gradient; 0: no limit.", at_least=0)
    eval_interval: int = setting(0, "Updates between evaluations; 0: about ten.", at_least=0)
    eval_tokens: int = setting(
        1_000_000, "Evaluate on all of val up to this size, beyond it on this many.", at_least=1
    )
    log_interval: int = setting(20, "Updates between progress lines.", at_least=1)
    save_interval: int = setting(
        0, "Updates between checkpoints; 0: each evaluation, and every five minutes.", at_least=0
    )
    keep: int = setting(2, "Last checkpoints kept, one to step back to; the best too.", at_least=2)
    patience: int = setting(
        0, "End after this many evaluations without a better val loss; 0: never.", at_least=0
    )
    target_loss: float | None = setting(None, "End once the val loss is at most this.", at_least=0)
    # bad: the loss is not finite. One batch passes in one; after ten it is the weights
    max_bad_steps: int = setting(
        10, "Bad updates in a row before the run goes back, at half the learning rate.", at_least=1
    )
    tracker: Literal["none", "wandb", "tensorboard"] = setting("none", "Send metrics there too.")
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "Compile the network; auto: in runs long enough to repay it."
    )
    activation_checkpointing: bool = setting(
        False, "Recompute each block in the backward pass: less memory, slower."
    )
    shard: bool = setting(
        False, "FSDP2: each of several processes keeps a shard of weights and optimizer state."
    )
    zero_init: bool = setting(
        False, "Begin with every block as the identity: its output projections at zero."
    )
    lora: int = setting(
        0, "Learn adapters of this rank only, merged into the weights on save; 0: all weights."
        " By AdamW, at twice the rate.", at_least=0
    )  # fmt: skip
    # as in "LoRA Without Regret" (Thinking Machines 2025): a rate then suits ranks of 1 to 512
    lora_alpha: float = setting(32.0, "Times this over the rank they count.", at_least=0)
    beta: float = setting(
        0.1, "How much a preference weighs: a larger one leads less far from the run.", at_least=0
    )
    seed: int = setting(
        1337, "Of the weights, the order of the data, and dropout.", at_least=0, below=SEEDS_END
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in given[:2])
            raise ConfigError(f"{flags} are both given: one decides the length.")
        if self.lora and (self.optimizer == "muon" or self.shard):
            flag = "--shard" if self.shard else "--optimizer muon"
            raise ConfigError(f"--lora {self.lora}: {flag} does not go with it: leave one out.")

    @property
    def base_lr(self) -> float:
        """The peak of the schedule, one that is not 0: each optimizer's own is in proportion."""
        return self.learning_rate or self.matrix_lr or self.table_lr or 0.0

    @property
    def lr_floor(self) -> float:
        """Where the schedule ends."""
        return self.base_lr / 10 if self.min_lr is None else self.min_lr

    def rows_per_step(self, block_size: int) -> int:
        """Return the rows an update learns from: whole ones, so tokens_per_step is rounded down."""
        return max(1, self.tokens_per_step // block_size)


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """What --minutes asked for, and how far the run was then; in config.json."""

    seconds: float
    from_step: int = 0
    from_s: float = 0.0  # of the run's own seconds
    auto: list[str] = field(default_factory=list)  # intervals that nobody gave


def own_decisions(limit: TimeLimit | None, decisions: Iterable[list[int]]) -> list[list[int]]:
    """Return those decisions of setup/replan.py that were made for ``limit``, not one before it."""
    return [each for each in decisions if limit is not None and each[0] > limit.from_step]


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What a TrainConfig leaves open, decided: for a new run by setup/autotune.py."""

    max_steps: int
    batch_size: int  # rows of a micro-step, in each process
    eval_interval: int
    save_interval: int
    compile: Literal["on", "off"]

    def after(self, limit: TimeLimit | None, decisions: Iterable[list[int]]) -> "TrainPlan":
        """Return the plan after the decisions of setup/replan.py: with the steps of the last one.

        Intervals stay, and with them their share of the time; where steps become many times as
        many, those that nobody gave double with them.
        """
        own = own_decisions(limit, decisions)
        if limit is None or not own:
            return self
        doublings = max(0, (own[-1][1] // self.max_steps).bit_length() - 1)
        intervals = {name: getattr(self, name) << doublings for name in limit.auto}
        return replace(self, max_steps=own[-1][1], **intervals)

    def is_eval_step(self, step: int) -> bool:
        """Tell whether a run is evaluated after ``step`` updates."""
        return step > 0 and (step % self.eval_interval == 0 or step == self.max_steps)

    def first_logged_step(self, step: int) -> int:
        """Return the first step that a run which goes on after ``step`` puts on record.

        An evaluation that is due at that very step is made again, and its line written again.
        """
        return step if self.is_eval_step(step) else step + 1

    def remaining_s(self, step: int, step_s: float, eval_s: float, save_s: float) -> float:
        """Estimate the seconds from ``step`` to the end: updates, evaluations and saves."""

        def multiples(interval: int) -> int:
            """Count those from ``step``, whose own are not made yet, up to the last step."""
            return (self.max_steps - 1) // interval - max(0, step - 1) // interval

        both = math.lcm(self.eval_interval, self.save_interval)
        n_evals = 1 + multiples(self.eval_interval)
        n_saves = n_evals + multiples(self.save_interval) - multiples(both)
        return (self.max_steps - step) * step_s + n_evals * eval_s + n_saves * save_s

    def seconds_per_step(self, step_s: float, eval_s: float, save_s: float) -> float:
        """Estimate what a step more takes, with its share of evaluations and saves."""
        save_interval = min(self.eval_interval, self.save_interval)
        return step_s + eval_s / self.eval_interval + save_s / save_interval


def saved_settings(config: TrainConfig, plan: TrainPlan) -> dict[str, Any]:
    """Return what config.json holds of both: every setting, with its value in the plan."""
    return asdict(config) | dict.fromkeys(LENGTHS) | asdict(plan)


def new_limit(config: TrainConfig) -> dict[str, Any] | None:
    """Return what config.json of a new run holds of --minutes."""
    if config.minutes is None:
        return None
    auto = [name for name in ("eval_interval", "save_interval") if not getattr(config, name)]
    return asdict(TimeLimit(seconds=60 * config.minutes, auto=auto))


def load_limit(settings: dict[str, Any]) -> TimeLimit | None:
    """Return the time limit in a config.json's settings, if there is one."""
    saved = settings.get("time_limit")
    return TimeLimit(**saved) if saved else None


def load_settings(saved: dict[str, Any], where: str) -> tuple[TrainConfig, TrainPlan]:
    """Return both as saved in the file ``where``; raise ConfigError for unknown settings."""
    config = from_dict(TrainConfig, saved, where)
    decided = {item.name: getattr(config, item.name) for item in fields(TrainPlan)}
    return config, TrainPlan(**decided)
