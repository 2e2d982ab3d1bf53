"""What a run learns from, and is scored on: windows of a text, or whole conversations.

Which rows an update has is a pure function of (seed, step), for all ranks together; each has its
part of them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common.dataset import SPLITS, DataFolder, Split
from common.models.gpt import GPT
from common.models.loss import IGNORED
from train.batches.conversations import Conversations
from train.batches.windows import drawn_starts, window_starts
from train.config import TrainConfig
from train.data import Batch, cut_windows
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.evaluate import Objective, next_token, window_batches
from train.preference import Preference, is_pair


class WindowSource:
    """Windows of a text, each token once an epoch; or, as in runs of before, drawn anywhere."""

    objective: Objective = staticmethod(next_token)

    def __init__(
        self,
        data: DataFolder,
        config: TrainConfig,
        block_size: int,
        group: ProcessGroup,
        *,
        draws: bool,
    ) -> None:
        self._data, self._seed, self._block_size = data, config.seed, block_size
        self._draws = draws
        self._n_all = config.rows_per_step(block_size)
        self._group = group
        self.tokens_per_epoch = float(data.n_tokens("train"))

    def batch(self, step: int) -> Batch:
        """Return this rank's windows of a step."""
        ids, T = self._data.tokens("train"), self._block_size  # noqa: N806
        n_rows = self._n_all // self._group.world_size
        own = slice(self._group.rank * n_rows, (self._group.rank + 1) * n_rows)
        if self._draws:
            starts = drawn_starts(self._seed, step, self._n_all, len(ids), T)[own]
        else:
            first = step * self._n_all + own.start
            starts = window_starts(self._seed, first, n_rows, len(ids), T)
        return Batch(cut_windows(ids, starts, T), n_rows * T)

    def eval_batches(
        self, split: Split, max_tokens: int, n_rows: int
    ) -> list[Callable[[], Tensor]]:
        """Return what makes each batch to score, of ``n_rows`` at most."""
        return window_batches(self._data.tokens(split), self._block_size, max_tokens, n_rows)


class ConversationSource:
    """Rows of conversations, and windows of ``base``, the text that its network comes from.

    Or rows of pairs of them, one preferred: beside ``reference``, or their network's own adapters.
    """

    def __init__(
        self,
        data: DataFolder,
        base: DataFolder | None,
        reference: GPT | None,
        config: TrainConfig,
        block_size: int,
        group: ProcessGroup,
        *,
        draws: bool,
    ) -> None:
        self._draws = draws  # windows of base, as in runs of before
        self._splits = {s: Conversations(data, s, block_size, config.seed) for s in SPLITS}
        self.objective: Objective = next_token
        if data.has_pairs:
            self.objective = Preference(reference, config.beta)
        self._base, self._mix, self._seed = base, config.mix if base else 0.0, config.seed
        self._block_size, self._group = block_size, group
        self._n_all = config.rows_per_step(block_size)
        n_tokens = self._splits["train"].n_rows * block_size
        self.tokens_per_epoch = n_tokens / (1 - self._mix)

    def batch(self, step: int) -> Batch:
        """Return this rank's rows of a step."""
        # of base: those that make up its share of all rows so far
        first, end = (s * self._n_all - int(s * self._n_all * self._mix) for s in (step, step + 1))
        train, T = self._splits["train"], self._block_size  # noqa: N806
        rows = train.rows(train.in_turn(first, end - first))
        if self._base is not None and (n_base := self._n_all - len(rows)):
            ids = self._base.tokens("train")
            if self._draws:
                starts = drawn_starts(self._seed, step, n_base, len(ids), T)
            else:
                n_before = step * self._n_all - first
                starts = window_starts(self._seed, n_before, n_base, len(ids), T)
            windows = cut_windows(ids, starts, T)
            x, y = windows[:, :-1], windows[:, 1:]
            rows = torch.cat((rows, torch.stack((x, y, torch.zeros_like(x)), dim=1)))
        n_ranks = self._group.world_size
        own = rows.chunk(n_ranks)[self._group.rank]
        learned = is_pair(rows) if rows.dim() == 4 else rows[:, 1] != IGNORED
        return Batch(own, int(learned.sum()) / n_ranks)

    def eval_batches(
        self, split: Split, max_tokens: int, n_rows: int
    ) -> list[Callable[[], Tensor]]:
        """Return what makes each batch to score: all rows, or some spread evenly over them."""
        rows = self._splits[split]
        n = min(rows.n_rows, max(1, max_tokens // self._block_size))
        numbers = np.linspace(0, rows.n_rows - 1, n).astype(np.int64)
        return [partial(rows.rows, numbers[i : i + n_rows]) for i in range(0, n, n_rows)]


Source = WindowSource | ConversationSource


def make_source(
    data: DataFolder,
    config: TrainConfig,
    block_size: int,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    base: DataFolder | None = None,
    reference: GPT | None = None,
    draws: bool = False,
) -> Source:
    """Return what ``data`` holds; ``base`` is the text that --mix adds to conversations.

    With ``draws`` windows are drawn with replacement, as in runs of format 1.
    """
    if data.has_masks:
        return ConversationSource(data, base, reference, config, block_size, group, draws=draws)
    return WindowSource(data, config, block_size, group, draws=draws)
