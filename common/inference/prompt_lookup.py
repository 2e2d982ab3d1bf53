"""Drafts from the text itself: what followed its last few ids before is drafted to follow again.

Drafts are decoded in the same pass as the newest id. They decide nothing: ids are sampled as ever,
and the logits after a draft that turns out right are there already. Source: prompt lookup decoding,
Saxena 2023 (github.com/apoorvumang), a case of speculative decoding, Leviathan et al. 2022
(arXiv:2211.17192).
"""

from collections import deque
from collections.abc import Sequence

from common.inference.backend import NextLogits

NGRAM = 3  # ids that must have stood before, in this order
MAX_DRAFT = 8  # ids; from 1 on, twice as many each time that all were right


class PromptLookup:
    """The drafts of one text."""

    def __init__(self) -> None:
        self.following: dict[tuple[int, ...], int] = {}  # NGRAM ids -> where the next one is
        self.n_draft = 1
        # ids of a draft that are not sampled yet, and the logits after each
        self.pending: deque[tuple[int, NextLogits]] = deque()

    def index(self, ids: Sequence[int], start: int) -> None:
        """Note what follows what in ids[start:], and in these alone."""
        ends = range(start + NGRAM, len(ids))
        self.following = {tuple(ids[end - NGRAM : end]): end for end in ends}

    def draft(self, ids: Sequence[int], limit: int) -> list[int]:
        """Return at most ``limit`` ids that may come next, none where the last ones are new."""
        at = self.following.get(tuple(ids[-NGRAM:]))
        if at is None:
            return []
        period = len(ids) - at  # behind the text's end it is drafted to begin again
        return [ids[at + i % period] for i in range(min(self.n_draft, limit))]

    def verify(self, ids: Sequence[int], idx: int) -> NextLogits | None:
        """Note that ``idx`` follows ``ids``; return the logits after it if it was drafted."""
        self.following[tuple(ids[-NGRAM:])] = len(ids)
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
