"""How ids are chosen."""

from dataclasses import dataclass

from common.settings import SEEDS_END, check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How ids are chosen."""

    max_new_tokens: int = setting(200, "Stop after this many tokens.", at_least=1)
    temperature: float = setting(
        0.8, "Below 1 bolder, above 1 wilder; 0: always the likeliest.", at_least=0, below=1e30
    )
    top_k: int = setting(0, "Choose among this many likeliest tokens; 0: among all.", at_least=0)
    top_p: float = setting(
        0.95, "Choose among the likeliest tokens that together have this probability.", at_least=0
    )
    min_p: float = setting(
        0.0, "Leave out tokens below this share of the likeliest's probability.", at_least=0,
        below=1.0,
    )  # fmt: skip
    repetition_penalty: float = setting(
        1.0,
        "Above 1: make tokens that the text already holds less likely.",
        at_least=0.01,
        below=1e30,
    )
    seed: int = setting(
        1337, "The same seed and prompt give the same text.", at_least=0, below=SEEDS_END
    )

    def __post_init__(self) -> None:
        check_ranges(self)
