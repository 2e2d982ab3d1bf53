"""Angles that grow with the position: queries and keys are turned by them, or waves made of them.

Sources: sinusoidal positions, Vaswani et al. 2017, section 3.5 (arXiv:1706.03762); rotary ones, Su
et al. 2021, section 3.4.2 (arXiv:2104.09864), of channels in halves as transformers pairs them.
"""

import torch
from torch import Tensor

SINUSOIDAL_THETA = 10_000.0  # the published base
Angles = tuple[Tensor, Tensor] | None  # their cosines and sines, each (1 or B, 1, T, hs/2)


def make_angles(n_positions: int, size: int, theta: float = SINUSOIDAL_THETA) -> Tensor:
    """Return (n_positions, size / 2) angles: the position times a frequency for each pair."""
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    return torch.outer(torch.arange(n_positions).float(), frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i and i + hs/2 of ``x`` (B, nh, T, hs) by angles (1 or B, 1, T, hs/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
