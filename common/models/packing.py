"""Several conversations in one row of ids, none of which sees anything of another.

    idx         a b c d e f g h    three conversations, end to end
    starts      0 0 0 3 3 5 5 5    for each token the position at which its own begins
    positions   0 1 2 0 1 0 1 2

Attention and n-grams reach back to the start and not beyond, so that each conversation has the
logits and gradients that it has alone.

Source: Krell et al. 2021, section 3.2 (arXiv:2107.02027).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def packed_positions(starts: Tensor) -> Tensor:
    """Return (B, T): how far each token is from where its conversation begins."""
    return torch.arange(starts.shape[1], device=starts.device) - starts


def packed_mask(starts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, T, T) to add to scores: 0 where a token (row) attends, else minus infinity."""
    keys = torch.arange(starts.shape[1], device=starts.device)
    hidden = (keys > keys[:, None]) | (keys < starts[..., None])  # (B, T, T)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))[:, None]


def packed_recent(recent: Sequence[Tensor], starts: Tensor) -> list[Tensor]:
    """Return shifted ids with 0, as before a text, for those of the conversation before."""
    positions = packed_positions(starts)
    return [ids * (positions >= n_before) for n_before, ids in enumerate(recent)]
