"""Normalisation of the residual stream, and of queries and keys."""

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """Root mean square normalisation, in one kernel under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., size), normalised."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """Return the normalisation that the config names, over ``size`` channels."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=config.eps)
    return nn.LayerNorm(size, eps=config.eps, bias=config.bias)
