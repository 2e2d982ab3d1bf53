"""Model FLOPs utilisation: the arithmetic that a network needs, over what its GPU can do.

Source: Chowdhery et al. 2022, appendix B (arXiv:2204.02311): six operations a matrix weight and
token, and attention's twelve a layer, channel and token of context, not halved for its causality.
"""

import torch

from common.device import Device
from common.models.gpt import GPT

# 10^12 operations a second of dense 16-bit matrix products summed in float32, from NVIDIA's data
# sheets and, for GeForce, the architecture papers. bfloat16; float16 where a GPU lacks it (T4,
# V100). The first name that a device's contains counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def flops_per_token(model: GPT) -> int:
    """Return the operations of a forward and backward pass, for each token trained on."""
    c = model.config
    of_blocks = sum(p.numel() for p in model.h.parameters() if p.dim() == 2)
    head = model.wte if c.tied_head else model.lm_head  # an embedding is looked up for nothing
    return 6 * (of_blocks + head.weight.numel()) + 12 * c.n_layer * c.n_embd * c.block_size


def mfu(model: GPT, device: Device, tokens_per_second: float, *, world_size: int) -> float | None:
    """Return the share of the GPUs' 16-bit peak that training uses; None where it is not known.

    The tokens are those of all processes, each on a GPU like this one.
    """
    if device.torch_device.type != "cuda" or device.dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device.torch_device)
    peaks = [1e12 * peak for known, peak in PEAK_TFLOPS.items() if known in name]
    needed = flops_per_token(model) * tokens_per_second
    return needed / (world_size * peaks[0]) if peaks else None
