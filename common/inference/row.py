"""One text of a Decoder: its ids, which of them the next prediction sees, which the cache holds."""

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from common.inference.backend import NextLogits, Position
from common.inference.config import GenerateConfig
from common.inference.prompt_lookup import PromptLookup


def window_start(n_tokens: int, block_size: int) -> int:
    """Return the first of ``n_tokens`` tokens that the next prediction sees.

    Example: with a block_size of 8, tokens 0-7 are seen whole; the ninth token makes the context
    re-base to the 4 before it, so 9 tokens are seen from 4 on, and so up to 12; 13 from 8 on.
    """
    if n_tokens <= block_size:
        return 0
    half = block_size - block_size // 2
    return -(-(n_tokens - block_size) // half) * half


class Row:
    """A text that grows: its ids, how they are sampled, and how many of them the cache holds."""

    def __init__(
        self, ids: list[int], config: GenerateConfig, top_logprobs: int, vocab_size: int
    ) -> None:
        self.ids, self.config, self.top_logprobs = ids, config, top_logprobs
        # Python's own: the same numbers on every machine
        self.rng = random.Random(config.seed)
        self.start = self.n_cached = 0  # the first id that is seen; how many the cache holds
        self.logits: NextLogits | None = None  # for the next token, where they are known already
        self.lookup = PromptLookup()
        self.seen: npt.NDArray[np.bool_] | None = None
        if config.repetition_penalty != 1:
            self.seen = np.zeros(vocab_size, np.bool_)
            self.seen[ids] = True

    def append(self, idx: int) -> None:
        """Add one id to the text."""
        self.logits = self.lookup.verify(self.ids, idx)
        self.n_cached += self.logits is not None
        self.ids.append(idx)
        if self.seen is not None:
            self.seen[idx] = True

    def positions(self, number: int, draft: list[int], n_recent: int) -> Iterator[Position]:
        """Yield where the newest id and those of the draft behind it go in the cache."""
        ids = [0] * n_recent + self.ids[max(self.start, len(self.ids) - n_recent) :] + draft
        for i in range(len(draft) + 1):
            end = len(ids) - len(draft) + i
            yield Position(number, self.n_cached + i, ids[end - n_recent : end][::-1])
