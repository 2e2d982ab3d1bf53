"""What a network computes in each of its passes, counted."""

from typing import Any

import pytest
import torch

from common.inference.cpu.backend import CpuBackend
from common.inference.torch_backend import TorchBackend


def counted(network: CpuBackend | TorchBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many tokens a network computes in each pass, from now on."""
    n_tokens: list[int] = []
    if isinstance(network, TorchBackend):
        hidden = network.hidden

        def noted(recent: Any, positions: torch.Tensor, attend: Any) -> torch.Tensor:
            n_tokens.append(positions.numel())
            return hidden(recent, positions, attend)

        monkeypatch.setattr(network, "hidden", noted)
    else:
        embed = network.embed

        def noted_too(recent: Any, positions: Any) -> Any:
            n_tokens.append(len(positions))
            return embed(recent, positions)

        monkeypatch.setattr(network, "embed", noted_too)
    return n_tokens
