"""Low-rank adapters: the network stays as it is, and two narrow matrices beside each weight learn.

    y = x W^T + b + alpha / R  (x A^T) B^T      A (R, in) is drawn, B (out, R) begins at zero

A saved network has W + alpha / R  B A in the place of W: it is one like any other. As that sum is
rounded, W cannot be had back from it, so the optimizer's file keeps W, A and B as they are, and a
resumed run goes on with the same bits, also where the run that it began from is gone.

Sources: Hu et al. 2021 (arXiv:2106.09685); on all linear layers: Dettmers et al. 2023, section 4
(arXiv:2305.14314).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.gpt import GPT


class LoRALinear(nn.Module):
    """A linear layer with an adapter: W and b are those of ``linear``, and learn no more."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        # as nn.Linear is drawn, as by the authors' code; on the CPU, so the same on any device
        bound = 1 / math.sqrt(linear.in_features)
        drawn = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for ``x`` (..., in)."""
        y = F.linear(x, self.weight, self.bias)
        if not self.scale:
            return y
        return y + F.linear(self.scale * F.linear(x, self.lora_A), self.lora_B)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:  # fmt: skip
        """Add what an nn.Linear would: the merged weight and the bias."""
        with torch.no_grad():
            merged = torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale)
        destination[prefix + "weight"] = merged
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias.detach()


def add_lora(model: GPT, rank: int, alpha: float, seed: int) -> None:
    """Freeze ``model``; give each linear layer of its blocks an adapter; of rank 0: do nothing."""
    if not rank:
        return
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(requires_grad=False)
    for block in model.h:
        for sublayer in block.children():
            for name, layer in sublayer.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(sublayer, name, LoRALinear(layer, rank, alpha, generator))


def lora_layers(model: GPT) -> dict[str, LoRALinear]:
    """Return the layers that have an adapter, by name; none in a network without."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def unmerged(model: GPT) -> dict[str, nn.Parameter]:
    """Return W, A and B of each layer by name: what a saved network has only the sum of."""
    return {
        f"{layer}.{name}": parameter
        for layer, module in lora_layers(model).items()
        for name, parameter in module.named_parameters()
        if name != "bias"
    }


@contextmanager
def without_lora(model: GPT) -> Iterator[None]:
    """Let ``model`` be what it was before its adapters learned, for a while."""
    layers = lora_layers(model).values()
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale
