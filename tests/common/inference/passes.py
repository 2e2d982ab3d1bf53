"""What a network computes in each of its passes, counted."""

from typing import Any

import pytest
import torch

from common.inference.cpu.backend import CpuBackend
from common.inference.torch_backend import TorchBackend


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
