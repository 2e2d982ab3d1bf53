"""Adagrad, for embedding tables of which a step reads few rows: only those are updated.

A row's rate falls with the sum of its own squared gradients, so that a rare one still learns
fast - but not at full rate from its first gradient on, or it would memorize the few texts that it
occurs in: each row begins as if it had had DAMPING gradients.

Source: Duchi, Hazan and Singer 2011, "Adaptive subgradient methods for online learning and
stochastic optimization".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.distributed.fsdp import full_tensor, to_local

# In mean squared gradients of the first step. Without, 3.5 % more bits a byte after 1.5 epochs of
# wikitext-2; 10 to 100 are nearly the same: tests/bench/RECIPE.md.
DAMPING = 30.0
EPS = 1e-10  # keeps 0 from being divided by 0


@dataclass(eq=False, kw_only=True)
class Adagrad:
    """Updates ``params`` at the rate ``lr``, which is to be set before each step."""

    params: Sequence[Tensor]
    lr: float = 0.0
    ratio: float = 1.0  # of this rate to the schedule's
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every row that has a gradient; a dense gradient has all of them."""
        for p in self.params:
            if p.grad is None:
                continue
            if p not in self.state:
                self.state[p] = {"sum": torch.full_like(p, DAMPING * _mean_square(p.grad))}
            sum_ = self.state[p]["sum"]
            if p.grad.is_sparse:
                gradient = p.grad.coalesce()
                rows, g = gradient._indices()[0], gradient._values()  # (n,) and (n, C)
                row_sum = torch.addcmul(sum_[rows], g, g)
                sum_.index_copy_(0, rows, row_sum)
                p.index_add_(0, rows, g / row_sum.sqrt_().add_(EPS), alpha=-self.lr)
            else:
                local_sum, g = to_local(sum_), to_local(p.grad)
                local_sum.addcmul_(g, g)
                to_local(p).addcdiv_(g, local_sum.sqrt().add_(EPS), value=-self.lr)


def _mean_square(gradient: Tensor) -> float:
    """Return the mean of the squares of a gradient's values that are not 0."""
    values = gradient.coalesce()._values() if gradient.is_sparse else gradient
    total, count = full_tensor(values.square().sum()), full_tensor((values != 0).sum())
    return float(total) / max(1, int(count))
