"""Clipping of the gradient, over all of a network: in shards, sparse, or times a loss scale."""

import torch
from torch import Tensor

from common.models.gpt import GPT
from train.distributed.comm import ProcessGroup
from train.distributed.fsdp import is_sharded, to_local


def clip_grad_norm_(model: GPT, max_norm: float, loss_scale: float, group: ProcessGroup) -> Tensor:
    """Undo the loss scale and clip, without waiting for a GPU; return the norm before clipping.

    With a ``max_norm`` of 0 nothing is clipped.
    """
    gradients = [_values(p) for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if is_sharded(model):
        norm = group.all_reduce_(norm.square()).sqrt()
    norm = norm / loss_scale
    factor = torch.full_like(norm, 1 / loss_scale)
    if max_norm:
        # 1e-6: as torch.nn.utils.clip_grad_norm_, for a gradient of 0
        factor *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if max_norm or loss_scale != 1:
        torch._foreach_mul_(gradients, factor)
    return norm


def _values(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient; of a sparse one the values that are there, as a view."""
    assert parameter.grad is not None
    gradient = to_local(parameter.grad)
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()
