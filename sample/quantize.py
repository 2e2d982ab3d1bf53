"""Weights in a byte each, for CPUs: a quarter of the memory to read, so more tokens a second.

Each row of a matrix is stored as whole numbers from -127 to 127 and one scale; what is multiplied
with it is rounded the same way, token by token, as it comes (dynamic quantization; oneDNN
multiplies bytes and adds up in 32 bits, which is exact: a row does not depend on others). The
embedding, of which a token reads one row, stays as it is; the head, also a shared one, is
quantized. What it costs is measured by `sample score --quantize int8`.

Source: Jacob et al. 2018, section 2 (arXiv:1712.05877), with zero points of 0 for weights.
"""

import torch
from torch import Tensor

from common.linear import Then, after

LARGEST = 127  # of the weights' bytes; -128 would have no opposite
MIDDLE = 128  # the byte that stands for 0 in what is multiplied: oneDNN wants it unsigned
LEAST = 1e-30  # keeps weights of zeros from dividing by 0


class Int8:
    """A linear map with weights of one byte."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Round ``weight`` (out, in), row by row, and pack it."""
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_(min=LEAST) / LARGEST  # (out,)
        rounded = (weight / scale[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        # without VNNI, oneDNN adds pairs of products in 16 bits: half the range cannot overflow
        self.largest = LARGEST if torch.cpu._is_vnni_supported() else LARGEST // 2
        self.scale = scale / self.largest
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)
        self.middle = torch.tensor(MIDDLE + 0.5)
        self.bias = None if bias is None else bias.detach()
        self._map = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, x: Tensor, then: Then = "none", other: Tensor | None = None) -> Tensor:
        """Return (B, T, out) for ``x`` (B, T, in), both in float32."""
        most = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)  # (B, T, 1)
        # middle + largest * x / most, cut off: rounded. Zeros have no most: any bytes, times 0
        x = torch.addcdiv(self.middle, x, most, value=self.largest).to(torch.uint8)
        y = self._map(
            x, 1.0, MIDDLE, self.weight, self.scale, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y = y.mul_(most) if self.bias is None else torch.addcmul(self.bias, y, most)
        return after(y, then, other)
