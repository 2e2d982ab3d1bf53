"""Matrices for generation: a linear map, and what is done with its result in the same pass.

Generating one token reads every weight once, so in a large network memory sets the speed, and in
a small one the number of calls. Both are measured in tests/bench/GENERATION.md.

A text's result must not depend on how many others are computed with it, or a seed would give
another text beside others. Both ways to multiply on CPUs add up in the same order for any number of
texts, but for oneDNN with a single row that is long: that is computed as two.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

PACK_FOR_ROWS = 16  # the blocks that oneDNN chooses for this many suit 1 to some hundreds
# Beyond so many channels in, oneDNN adds up a single row in another order than several.
LONG = 1024
# Up to so many numbers a call of oneDNN takes longer to prepare than the product does.
SMALL = 1 << 17
ALIGNED = 16  # numbers: 64 bytes
VECTOR = 64  # numbers that no processor's loop leaves a part of

Then = Literal["none", "gelu", "relu", "silu", "add", "mul"]


class Linear(Protocol):
    """A linear map, and what is done with its result in the same pass over it."""

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out) for ``x`` (B, T, in); "add" and "mul" take ``other`` (B, T, out)."""
        ...


Pack = Callable[[Tensor, Tensor | None], Linear]
FUNCTIONS: dict[Then, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def after(y: Tensor, then: Then, other: Tensor | None) -> Tensor:
    """Do what ``then`` says with a linear map's result, as a step of its own."""
    if then == "none":
        return y
    if other is not None:
        return y + other if then == "add" else y * other
    function = FUNCTIONS[then]
    if y.shape[-1] % VECTOR == 0:
        return function(y)
    # what is left over behind whole vectors is computed another way, to other last bits: each text
    # must have its own left over, not that of all together
    return torch.stack([function(text) for text in y])


class Packed:
    """Weights in the blocks in which oneDNN reads them, for CPUs."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy ``weight`` (out, in) into blocks."""
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_FOR_ROWS)
        self.bias = bias
        self.is_long = weight.shape[1] > LONG
        self._map = torch.ops.mkldnn._linear_pointwise.default
        self._map_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out)."""
        if self.is_long and x.shape[0] == x.shape[1] == 1:
            twice = None if other is None else torch.cat((other, other))
            return self(torch.cat((x, x)), then, twice)[:1]
        if other is not None:
            return self._map_with(x, other, self.weight, self.bias, then)  # type: ignore[no-any-return]
        name = "swish" if then == "silu" else then
        return self._map(x, self.weight, self.bias, name, [], "tanh" if then == "gelu" else "")  # type: ignore[no-any-return]


class Small:
    """A small matrix, multiplied with each text by itself."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy ``weight`` (out, in) the other way round, in which it is read."""
        self.weight = weight.t().contiguous()[None]  # (1, in, out)
        self.bias = bias

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out)."""
        weight = self.weight
        if x.shape[0] != weight.shape[0]:
            weight = self.weight = weight[:1].expand(x.shape[0], -1, -1)
        if self.bias is not None:
            return after(torch.baddbmm(self.bias, x, weight), then, other)
        if other is not None and then == "add":
            return torch.baddbmm(other, x, weight)
        return after(torch.bmm(x, weight), then, other)


class Plain:
    """Weights as they are: on GPUs, and where torch lacks oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out)."""
        return after(F.linear(x, self.weight, self.bias), then, other)


def pack(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the linear map of these weights in the form that suits their size and device."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not on_cpu or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Plain(weight, bias)
    # texts must lie alike in memory, or the library may take another way to their last bits
    is_aligned = all(size % ALIGNED == 0 for size in weight.shape)
    is_small = weight.numel() <= SMALL and is_aligned
    return Small(weight, bias) if is_small else Packed(weight, bias)
