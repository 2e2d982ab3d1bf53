"""Which backend generates: the compiled one on CPUs, PyTorch's operators elsewhere."""

import torch

from common.inference.backend import Backend
from common.models.gpt import GPT


def make_backend(model: GPT, *, int8: bool = False) -> Backend:
    """Return a model prepared for generation on its device; with ``int8`` weights, on CPUs."""
    weight = model.wte.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        from common.inference.cpu.backend import CpuBackend  # and with it Numba: CPUs only
        from common.inference.cpu.quantize import quantize_int8

        return CpuBackend(model, quantize_int8 if int8 else None)
    from common.inference.torch_backend import TorchBackend

    return TorchBackend(model)
