"""What happens to a gradient before it is applied: clipping, and the loss scale of float16.

float16 reaches down to 6e-8: small gradients survive only if the loss is multiplied.

Source: Micikevicius et al. 2018, section 3.2 (arXiv:1710.03740); the values are torch.amp's.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from common.models.gpt import GPT

# A power of two, so that nothing is rounded; doubled after so many updates without overflow.
INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2_000


def clip_grad_norm_(model: GPT, max_norm: float, loss_scale: float, *, is_sharded: bool) -> Tensor:
    """Undo the loss scale, clip unless ``max_norm`` is 0; return the norm before clipping."""
    gradients = []
    for p in model.parameters():
        if p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            # of a sparse one the values that are there, as a view
            gradients.append(p.grad._values() if p.grad.is_sparse else p.grad)
    if is_sharded:  # each rank scales its shards, by the norm over all of them
        gradients = [cast(Any, gradient).to_local() for gradient in gradients]
        squared = torch.nn.utils.get_total_norm(gradients).square()
        torch.distributed.all_reduce(squared)
        norm = squared.sqrt()
    else:
        norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm / loss_scale
    factor = torch.full_like(norm, 1 / loss_scale)
    if max_norm:
        # 1e-6: as torch.nn.utils.clip_grad_norm_, for a gradient of 0
        factor *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if max_norm or loss_scale != 1:
        torch._foreach_mul_(gradients, factor)
    return norm


class GradScaler:
    """The factor of the loss: halved where gradients overflow, doubled after many that did not."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._is_enabled = dtype == torch.float16
        self.scale = INITIAL_SCALE if self._is_enabled else 1.0
        self.growth_tracker = 0  # updates since the scale last changed

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {"loss_scale": self.scale, "n_unscaled": self.growth_tracker}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what state_dict() returned, where this dtype needs a scale."""
        if self._is_enabled and state["loss_scale"] > 0:
            self.scale, self.growth_tracker = state["loss_scale"], state["n_unscaled"]

    def overflowed(self, loss: float, grad_norm: float) -> bool:
        """Adapt the scale to an update's result; tell whether it was too large for the gradient."""
        if self.scale > 1 and math.isfinite(loss) and not math.isfinite(grad_norm):
            self.scale, self.growth_tracker = self.scale / 2, 0
            return True
        if self._is_enabled:
            self.growth_tracker += 1
            if self.growth_tracker == GROWTH_INTERVAL:
                self.scale, self.growth_tracker = self.scale * 2, 0
        return False
