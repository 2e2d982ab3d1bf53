"""How much memory training takes, by a rough estimate, and what to do where it runs out."""

import gc
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.device import Device, is_out_of_memory
from common.errors import ConfigError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.loss import chunk_rows

FLOAT_BYTES = 4
# Tokens of a micro-batch on a CPU: more fall out of its caches. Of 256 to 4,096 tokens, 1,024 were
# quickest, a sixth quicker than 4,096 (2.6 M parameters, two cores).
CPU_TOKENS = 1_024
# Share of a GPU's free memory that the activations of one micro-batch may fill: it is an estimate.
MEMORY_SHARE = 0.25
MPS_BYTES = 4 << 30  # taken as free where a device does not tell
MAX_ROWS = 1 << 20


def activation_bytes(config: ModelConfig, n_rows: int, device_type: str) -> int:
    """Estimate what ``n_rows`` rows of block_size tokens keep for their backward pass, in float32.

    Of each token and block: some 16 tensors as wide as the network, or as its heads together where
    that is more, and 3 as wide as its MLP. Of the tokens whose logits the loss has at once: logits,
    log-probabilities and their gradient.
    """
    n_tokens = n_rows * config.block_size
    width = max(config.n_embd, config.n_head * config.head_size)
    in_blocks = n_tokens * config.n_layer * (16 * width + 3 * config.inner_size)
    n_classes = config.padded_vocab_size
    in_loss = 3 * n_classes * min(n_tokens, chunk_rows(n_classes, device_type))
    return FLOAT_BYTES * (in_blocks + in_loss)


def training_bytes(model: GPT, n_rows: int, device_type: str) -> int:
    """Estimate all of it: of each parameter also weight, gradient and AdamW's two moments."""
    return FLOAT_BYTES * 4 * model.n_parameters + activation_bytes(
        model.config, n_rows, device_type
    )


def max_batch_size(config: ModelConfig, device: Device) -> int:
    """Return how many rows a micro-batch may have on this device, 1 at least."""
    kind = device.torch_device.type
    if kind == "cpu":
        return max(1, CPU_TOKENS // config.block_size)
    free = torch.cuda.mem_get_info(device.torch_device)[0] if kind == "cuda" else MPS_BYTES
    rows = range(1, MAX_ROWS)
    return max(
        1, bisect_right(rows, MEMORY_SHARE * free, key=lambda n: activation_bytes(config, n, kind))
    )


def free_memory(device: Device) -> None:
    """Give back what no tensor needs any more."""
    gc.collect()
    if device.torch_device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(where: str, remedy: str = "") -> Iterator[None]:
    """Say what to do where memory ran out in what cannot be retried."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"out of memory in {where}. Free memory that others hold{remedy}. Or train a new run "
            "with a shorter --block-size, fewer --n-layer or --n-embd, or a smaller --preset."
        ) from error
