"""Which backend generates: the compiled one on CPUs, PyTorch's operators elsewhere."""

import logging

import torch

from common.errors import ConfigError
from common.inference.backend import Backend
from common.models.gpt import GPT

log = logging.getLogger(__name__)


def make_backend(model: GPT, *, int8: bool = False) -> Backend:
    """Return a model prepared for generation on its device; with ``int8`` weights, on CPUs.

    Raises: ConfigError for int8 where Numba, which compiles for CPUs, cannot be imported.
    """
    # here: only what is used is imported, Numba on CPUs alone
    weight = model.wte.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        try:
            from common.inference.cpu.backend import CpuBackend
        except ImportError as error:
            if int8:
                raise ConfigError(
                    f"--quantize int8 needs Numba, which cannot be imported ({error}): install "
                    "requirements.txt, or leave it out."
                ) from error
            log.warning(
                "Numba cannot be imported (%s): PyTorch's operators generate, which takes some "
                "times as long.",
                error,
            )
        else:
            return CpuBackend(model, int8=int8)
    from common.inference.torch_backend import TorchBackend

    return TorchBackend(model)
