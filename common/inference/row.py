"""One text of a Decoder: its ids, which the next prediction sees, which the cache holds, drafts.

Drafts come from the text itself: what followed its last few ids before is drafted to follow again.
They are decoded in the same pass as the newest id and decide nothing: ids are sampled as ever, and
the logits after a draft that turns out right are there already. Source: prompt lookup decoding,
Saxena 2023 (github.com/apoorvumang), a case of speculative decoding, Leviathan et al. 2022
(arXiv:2211.17192).
"""

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from common.errors import CheckpointError
from common.models.config import GenerateConfig, ModelConfig

NGRAM = 3  # ids that must have stood before, in this order, to draft what followed
MAX_DRAFT = 8  # ids; from 1 on, twice as many each time that all were right

Floats = npt.NDArray[np.float32]
NextLogits = tuple[Floats, float]  # (V,) for one next token, and their logsumexp


class Position(NamedTuple):
    """Where a row's newest id goes in the cache, and that id with those before it, newest first."""

    row: int
    position: int
    recent: Sequence[int]  # as many as config.n_recent says, zeros before the first


class Logits(NamedTuple):
    """Logits (n, V) for the tokens after n tokens, and the logsumexp of each (n,)."""

    logits: Floats
    logsumexp: Floats  # not finite where one of the logits is not

    def each(self) -> Iterator[NextLogits]:
        """Yield those of one token after another; raise CheckpointError if they are not finite."""
        for logits, logsumexp in zip(self.logits, self.logsumexp.tolist(), strict=True):
            if not math.isfinite(logsumexp):
                raise CheckpointError(
                    "The network's logits are not finite numbers: its training has diverged. Use "
                    "an earlier checkpoint, or train anew with a lower --learning-rate."
                )
            yield logits, logsumexp


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
        self,
        ids: list[int],
        config: GenerateConfig,
        top_logprobs: int,
        model: ModelConfig,
        ends: Sequence[int] = (),
    ) -> None:
        self.ids, self.config, self.top_logprobs = ids, config, top_logprobs
        self.block_size, self.n_recent = model.block_size, model.n_recent
        self.rng = random.Random(config.seed)  # Python's own: the same numbers on every machine
        self.start = self.n_cached = 0  # the first id that is seen; how many the cache holds
        self.logits: NextLogits | None = None  # for the next token, where they are known already
        self.following: dict[tuple[int, ...], int] = {}  # NGRAM ids -> where the next one is
        self.n_draft = 1
        # ids of a draft that are not sampled yet, and the logits after each
        self.pending: deque[tuple[int, NextLogits]] = deque()
        self.seen: npt.NDArray[np.bool_] | None = None
        if config.repetition_penalty != 1:
            self.seen = np.zeros(model.vocab_size, np.bool_)
            self.seen[ids] = True
            self.seen[list(ends)] = False  # of earlier messages: or no answer would end
        self.counts: npt.NDArray[np.float32] | None = None
        if config.frequency_penalty:
            self.counts = np.zeros(model.vocab_size, np.float32)

    def append(self, idx: int) -> None:
        """Add one id to the text; the logits after it are known where it was drafted."""
        self.logits = self._verify(idx)
        self.n_cached += self.logits is not None
        self.following[tuple(self.ids[-NGRAM:])] = len(self.ids)
        self.ids.append(idx)
        if self.seen is not None:
            self.seen[idx] = True
        if self.counts is not None:
            self.counts[idx] += 1

    def prompt(self) -> list[int]:
        """Return the ids to prefill, of a new text or of one that is re-based; of others none."""
        start = window_start(len(self.ids), self.block_size)
        if self.n_cached and start == self.start:
            return []
        self.start, self.n_cached = start, 0
        return self.ids[start:]

    def prefilled(self, logits: NextLogits) -> None:
        """Note that the cache holds all ids that are seen, and the logits after them."""
        self.logits, self.n_cached = logits, len(self.ids) - self.start
        ends = range(self.start + NGRAM, len(self.ids))
        self.following = {tuple(self.ids[end - NGRAM : end]): end for end in ends}

    def positions(self, number: int, limit: int) -> list[Position]:
        """Return where the newest id goes in the cache, and those of a draft, ``limit`` at most."""
        n_free = self.start + self.block_size - len(self.ids)
        draft, n = self._draft(min(limit, n_free)), self.n_recent
        ids = [0] * n + self.ids[max(self.start, len(self.ids) - n) :] + draft
        ends = range(len(ids) - len(draft), len(ids) + 1)
        return [
            Position(number, self.n_cached + i, ids[end - n : end][::-1])
            for i, end in enumerate(ends)
        ]

    def decoded(self, positions: Sequence[Position], logits: Sequence[NextLogits]) -> None:
        """Note the logits after the newest id and after those of its draft."""
        self.logits = logits[0]
        self.n_cached += 1
        draft = [at.recent[0] for at in positions[1:]]
        self.pending.extend(zip(draft, logits[1:], strict=True))

    def _draft(self, limit: int) -> list[int]:
        """Return at most ``limit`` ids that may come next, none where the last ones are new."""
        at = self.following.get(tuple(self.ids[-NGRAM:]))
        if at is None:
            return []
        period = len(self.ids) - at  # behind the text's end it is drafted to begin again
        return [self.ids[at + i % period] for i in range(min(self.n_draft, limit))]

    def _verify(self, idx: int) -> NextLogits | None:
        """Return the logits after ``idx``, which comes next, if it was drafted."""
        if not self.pending:
            return None
        drafted, logits = self.pending.popleft()
        if drafted != idx:
            self.pending.clear()
            self.n_draft = 1
            return None
        if not self.pending:
            self.n_draft = min(2 * self.n_draft, MAX_DRAFT)
        return logits


def top_logprobs(logits: Floats, logsumexp: float, n: int) -> tuple[tuple[int, float], ...]:
    """Return the ``n`` likeliest ids, each with its logprob."""
    if not n:
        return ()
    likeliest = torch.from_numpy(logits).topk(min(n, len(logits))).indices.tolist()
    return tuple((idx, float(logits[idx]) - logsumexp) for idx in likeliest)
