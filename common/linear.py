"""A linear map, and what is done with its result, as network.py calls it."""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

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


class Plain:
    """Weights as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out)."""
        return after(F.linear(x, self.weight, self.bias), then, other)
