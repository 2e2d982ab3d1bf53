"""What a Decoder asks of a network, and which backend is taken: compiled on CPUs, else PyTorch's.

A backend is a network prepared for generation; its KV cache holds several rows, each a text of its
own, which begin by prefill and go on by decode.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from common.errors import ConfigError
from common.inference.row import Logits, Position
from common.models.config import ModelConfig
from common.models.gpt import GPT

log = logging.getLogger(__name__)


class KVCache(Protocol):
    """Keys and values of several rows, and what computes them."""

    # Tokens decoded together at most, of all rows: up to here a pass costs little more than for
    # one. 1 where drafts do not pay.
    max_batch_tokens: int

    def prefill(
        self, prompts: Sequence[tuple[int, Sequence[int]]], n_wanted: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Begin rows, each with its ids; yield rows and the logits after their last ``n_wanted``.

        Those of a row come in order, in as many parts as they are computed in.
        """

    def decode(self, positions: Sequence[Position]) -> Logits:
        """Put one more id at each of several positions; return the logits after each."""


class Backend(Protocol):
    """A network prepared for generation."""

    config: ModelConfig

    def make_cache(self, n_rows: int) -> KVCache:
        """Allocate a cache for ``n_rows`` texts."""


def make_backend(model: GPT, *, int8: bool = False) -> Backend:
    """Return a model prepared for generation; raise ConfigError for ``int8`` without Numba."""
    # here: only what is used is imported, Numba on CPUs alone
    weight = model.wte.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        try:
            from common.inference.cpu.backend import CpuBackend

            return CpuBackend(model, int8=int8)
        except ImportError as error:
            if int8:
                raise ConfigError(
                    f"--quantize int8 needs Numba, which cannot be imported ({error}): install "
                    "requirements.txt, or leave it out."
                ) from error
            slower = "PyTorch's operators generate, which takes some times as long."
            log.warning("Numba cannot be imported (%s): %s", error, slower)
    from common.inference.torch_backend import TorchBackend

    return TorchBackend(model)
