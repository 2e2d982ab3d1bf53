"""What a network computes in each of its passes, counted; shapes, and tokens of a decoder."""

from typing import Any

import pytest
import torch

from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder, Token
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES

SHAPES: list[dict[str, Any]] = [
    {},
    {"n_kv_head": 2, "tied_head": False},
    ARCHITECTURES["gpt2"] | {"n_embd": 48},
    ARCHITECTURES["gpt2"] | {"norm_first": False},
    # large and long enough for the other ways to multiply
    {"n_embd": 128, "n_inner": 1088, "n_layer": 1},
]


def counted(backend: CpuBackend | TorchBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many tokens a backend computes in each pass, from now on."""
    n_tokens: list[int] = []
    if isinstance(backend, TorchBackend):
        hidden = backend.hidden

        def noted(recent: Any, positions: torch.Tensor, attend: Any) -> torch.Tensor:
            n_tokens.append(positions.numel())
            return hidden(recent, positions, attend)

        monkeypatch.setattr(backend, "hidden", noted)
    else:
        embed = backend.embed

        def noted_too(recent: Any, positions: Any) -> Any:
            n_tokens.append(len(positions))
            return embed(recent, positions)

        monkeypatch.setattr(backend, "embed", noted_too)
    return n_tokens


def next_tokens(decoder: Decoder, row: int, n_new: int) -> list[Token]:
    """Return a row's next tokens, while the other rows go on as well."""
    return [decoder.step()[row] for _ in range(n_new)]
