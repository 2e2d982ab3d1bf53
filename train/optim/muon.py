"""Muon: momentum, with each matrix made orthogonal before it is applied.

Every direction of a matrix then learns at the same rate, where AdamW lets few dominate. Matrices
of one shape are stacked and made orthogonal together: one matrix at a time leaves most of a
machine idle.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; its scale,
which lets a rate tuned for AdamW stand: Liu et al. 2025 (arXiv:2502.16982, section 2.2).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.device import cpu_has_bfloat16
from train.distributed.fsdp import gather_like, shard_like, to_local

# p(x) = a x + b x^3 + c x^5, one after another: Jordan's quintic, five times. Singular values of at
# least LOWEST times the norm become 1 +- ERROR; smaller ones up to 485 times as large, a^5.
# "The Polar Express" (Amsel et al. 2025, arXiv:2505.16932) comes closer, 1 +- 0.15 from 1e-3 on, at
# the same cost, and learned less: 0.02 nats after 160 steps, at each of three rates (tiny,
# characters). Four and three of its polynomials save little and learned no more.
POLYNOMIALS = ((3.4445, -4.7750, 2.0315),) * 5
LOWEST, ERROR = 3e-3, 0.33
# From this ratio of sides on, products of the short side's squares alone are cheaper.
WIDE = 2
GATHER_SIZE = 8  # matrices of a sharded network that are all-gathered at a time
RMS = 0.2  # of AdamW's updates, which the scale gives to these too (arXiv:2502.16982)


def orthogonalised(x: Tensor) -> Tensor:
    """Return nearly U V^T for each matrix U S V^T of a stack (n, r, c) with r <= c.

    In the dtype of ``x``. A matrix of zeros stays one.
    """
    # 1e-15: below it the squares of the entries vanish in float32, and with them the norm
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-15)
    # the small square loses what is below the square root of the dtype's precision: float32 only
    if x.shape[-1] >= WIDE * x.shape[-2] and x.dtype == torch.float32:
        return _by_small_squares(x)
    for a, b, c in POLYNOMIALS:
        square = torch.bmm(x, x.mT)  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _by_small_squares(x: Tensor) -> Tensor:
    """Return the same for wide matrices: only the first and last product are as long as ``x``.

    With A = X X^T a polynomial makes Q X of X, and so Q A Q of A, where Q = a + b A + c A^2.
    """
    square = torch.bmm(x, x.mT)  # (n, r, r)
    product = q = _polynomial(square, *POLYNOMIALS[0])
    for coefficients in POLYNOMIALS[1:]:
        square = torch.bmm(torch.bmm(q, square), q)
        q = _polynomial(square, *coefficients)
        product = torch.bmm(q, product)
    return torch.bmm(product, x)


def _polynomial(square: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return a + b A + c A^2 of each matrix A."""
    q = torch.baddbmm(square, square, square, beta=b, alpha=c)
    q.diagonal(dim1=-2, dim2=-1).add_(a)
    return q


@dataclass(eq=False, kw_only=True)
class Muon:
    """Updates matrices at the rate ``lr``, which is to be set before each step.

    With Nesterov's momentum and decoupled weight decay. ``split_sizes`` has those that are several
    matrices on top of each other, with the rows of each.
    """

    params: Sequence[Tensor]
    split_sizes: dict[Tensor, list[int]]
    momentum: float
    weight_decay: float
    lr: float = 0.0
    ratio: float = 1.0  # of this rate to the run's
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        weights = [p for p in self.params if p.grad is not None]
        if not weights:
            return
        gradients = [to_local(p.grad) for p in weights if p.grad is not None]
        for p in weights:
            if p not in self.state:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        momenta = [to_local(self.state[p]["momentum_buffer"]) for p in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = torch._foreach_lerp(gradients, momenta, self.momentum)
        torch._foreach_mul_([to_local(p) for p in weights], 1 - self.lr * self.weight_decay)
        split_sizes = [self.split_sizes.get(p, [p.shape[0]]) for p in weights]
        if to_local(weights[0]) is weights[0]:
            self._apply(weights, updates, split_sizes)
        else:
            self._apply_sharded(weights, updates, split_sizes)

    def _apply_sharded(
        self, weights: list[Tensor], updates: Sequence[Tensor], split_sizes: list[list[int]]
    ) -> None:
        """Do the same with gathered matrices, a few at a time; each process does all of them."""
        for i in range(0, len(weights), GATHER_SIZE):
            batch = slice(i, i + GATHER_SIZE)
            likes = weights[batch]
            gathered = [gather_like(u, p) for u, p in zip(updates[batch], likes, strict=True)]
            changes = [torch.zeros_like(update) for update in gathered]
            self._apply(changes, gathered, split_sizes[batch])
            for weight, change in zip(likes, changes, strict=True):
                to_local(weight).add_(to_local(shard_like(change, weight)))

    def _apply(
        self, weights: list[Tensor], updates: Iterable[Tensor], split_sizes: Iterable[list[int]]
    ) -> None:
        """Subtract the updates, made orthogonal: those of one shape, either way up, together."""
        stacks = defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor]]](list)
        for weight, update, sizes in zip(weights, updates, split_sizes, strict=True):
            for w, u in zip(torch.split(weight, sizes), torch.split(update, sizes), strict=True):
                wide = (w, u) if w.shape[0] <= w.shape[1] else (w.mT, u.mT)
                stacks[tuple(wide[0].shape)].append(wide)
        for shape, pairs in stacks.items():
            stack = torch.stack([u for _, u in pairs]).to(_dtype(pairs[0][1]))
            scaled = list(orthogonalised(stack).to(pairs[0][0].dtype))
            torch._foreach_add_([w for w, _ in pairs], scaled, alpha=-self.lr * scale(shape))


def scale(shape: tuple[int, ...]) -> float:
    """Return what gives an orthogonal matrix of this shape entries of root mean square RMS.

    It has min(r, c) singular values of 1, so r c entries whose squares sum to min(r, c).
    """
    return RMS * math.sqrt(max(shape))


def _dtype(x: Tensor) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32.

    Three to four times as fast on a CPU that does, and no different in what was learned.
    """
    if x.is_cuda:
        fast = torch.cuda.get_device_capability(x.device) >= (8, 0)
    else:
        fast = x.device.type == "cpu" and cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32
