"""Cross-entropy straight from the hidden states: the logits (N, V) need never be there at once.

    plain:    hidden (N, C) -> logits (N, V) -> log-probabilities (N, V) -> loss
    chunked:  the same for some rows at a time; as the loss of a row needs no other row, its
              gradient is worked out at once, and its logits are freed

Of a network with a large vocabulary the logits are most of the memory: N = 16,384 tokens of GPT-2's
50,257 ids make 3.3 GB in float32, three times over. Both ways make the same matrix products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits (rows x V) beyond which the loss is made in chunks, and how many a chunk has. On a CPU
# 2^22 float32 are 16 MB: from 32 MB on, glibc returns each tensor to the kernel, which clears its
# pages again for the next. Measured, forward and backward, time of the plain way: 2,048 x 4,096
# logits 0.60 to 0.74, 8,192 x 1,024 0.6, 1,024 x 50,257 0.9; half as many as 2^22: 1.0. On a GPU
# larger products are quicker.
CHUNK_LOGITS = {"cpu": 1 << 22}
CHUNK_LOGITS_ELSEWHERE = 1 << 28
IGNORED = -100  # a target that is not learned; PyTorch's own default
CHUNK_ROWS = 512  # at least: each chunk also passes over the whole gradient of the weight


def chunk_rows(n_classes: int, device_type: str) -> int:
    """Return the tokens whose logits over ``n_classes`` are computed at once; of fewer, all are."""
    return max(CHUNK_ROWS, CHUNK_LOGITS.get(device_type, CHUNK_LOGITS_ELSEWHERE) // n_classes)


def next_token_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, vocab_size: int
) -> Tensor:
    """Return the mean cross-entropy in nats of ``targets`` (N,) under ``hidden`` (N, C).

    The mean is over those that are not IGNORED; of none at all it is 0.
    The logits are hidden @ weight.T + bias, of weight (rows, C); rows beyond ``vocab_size`` only
    round it up and have no part in the softmax, so padding changes neither loss nor gradient.
    """
    n_rows = chunk_rows(len(weight), hidden.device.type)
    n_learned = (targets != IGNORED).sum().clamp(min=1)
    if len(hidden) <= n_rows:
        logits = _logits(hidden, weight, bias, vocab_size)
        return F.cross_entropy(logits, targets, reduction="sum") / n_learned
    if torch.is_grad_enabled():
        total = _ChunkedLoss.apply(hidden, weight, bias, targets, vocab_size, n_rows)  # type: ignore[no-untyped-call]
        return total / n_learned  # type: ignore[no-any-return]
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for start in range(0, len(hidden), n_rows):
        logits = _logits(hidden[start : start + n_rows], weight, bias, vocab_size)
        total += F.cross_entropy(logits, targets[start : start + n_rows], reduction="sum")
    return total / n_learned


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocab_size: int) -> Tensor:
    """Return (N, rows of weight) in float32 at least; minus infinity beyond the vocabulary."""
    logits = F.linear(hidden, weight, bias)
    if len(weight) > vocab_size:
        logits[:, vocab_size:] = float("-inf")
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedLoss(torch.autograd.Function):
    """Works out the gradient in forward, up to the factor that backward brings."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        vocab_size: int,
        n_rows: int,
    ) -> Tensor:
        """Return the sum of the losses; see next_token_loss."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)  # once for all chunks
        d_hidden = torch.empty_like(hidden)
        # one that does not learn has none
        d_weight = torch.zeros_like(weight) if weight.requires_grad else None
        d_bias = None if bias is None else torch.zeros_like(bias)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(hidden), n_rows):
            rows = hidden[start : start + n_rows].to(dtype)
            target = targets[start : start + n_rows, None]
            logp = _logits(rows, w, b, vocab_size).log_softmax(dim=-1)
            learned, target = target != IGNORED, target.clamp(min=0)  # (rows, 1)
            total -= (logp.gather(1, target) * learned).sum()
            # of -log p[target] by the logits: p, less one at the target
            d_logits = logp.exp_().scatter_add_(1, target, logp.new_full(target.shape, -1.0))
            d_logits *= learned
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
            d_logits = d_logits.to(dtype)
            d_hidden[start : start + n_rows] = d_logits @ w
            if d_weight is None:
                continue
            if dtype == weight.dtype:
                d_weight.addmm_(d_logits.T, rows)  # without a second tensor as large
            else:
                d_weight += d_logits.T @ rows
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *d_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias; of the rest there are none."""
        # the division by the number of targets comes with d_loss, after a loss scale: float16 has
        # no 1e-9. In place: a second backward is an error of autograd's, not a second factor
        gradients = [None if d is None else d.mul_(d_loss[0]) for d in ctx.saved_tensors]
        return (*gradients, None, None, None)
