"""The network laid out for generation: the model is its oracle, and rows do not know of others."""

from typing import Any

import numpy as np
import pytest
import torch

from common.inference.backend import KVCache
from common.inference.cpu.backend import CpuBackend
from common.inference.row import Logits, Position
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES, ModelConfig
from tests.tiny import random_model

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "block_size": 12,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
}
SWITCHES: list[dict[str, Any]] = [
    {},
    {"norm": "layernorm"},
    {"norm_first": False},
    {"positions": "learned"},
    {"positions": "sinusoidal", "norm_first": False},
    {"head_bias": True, "pad_vocab": 64},
    {"head_bias": True, "pad_vocab": 64, "tied_head": False},
    {"mlp": "gelu"},
    {"mlp": "gelu_erf", "norm_eps": 0.1},
    {"head_dim": 6, "n_embd": 30, "norm_eps": 0.1, "rope_theta": 50.0},
    {"mlp": "relu"},
    {"mlp": "relu2"},
    {"ngrams": 4, "ngram_rows": 50},
    {"ngrams": 4, "ngram_rows": 50, "ngram_dim": 7, "ngram_min_count": 2},
    {"qk_norm": False},
    {"bias": True},
    {"tied_head": False},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "bias": True, "qk_norm": False},
    ARCHITECTURES["gpt2"],
]


NETWORKS = [CpuBackend, TorchBackend]


def place(ids: list[int], position: int, n_recent: int, row: int = 1) -> Position:
    """Return where one of ``ids`` goes, with those before it, zeros where there are none."""
    recent = ids[: position + 1][: -n_recent - 1 : -1]
    return Position(row, position, recent + [0] * (n_recent - len(recent)))


def in_pieces(cache: KVCache, ids: list[int], n_read: int, n_recent: int) -> Logits:
    """Return what follows each id: ``n_read`` of them read at once, the rest one by one."""
    found = [logits for _, logits in cache.prefill([(1, ids[:n_read])], n_read)]
    found += [cache.decode([place(ids, at, n_recent)]) for at in range(n_read, len(ids))]
    return Logits(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@pytest.mark.parametrize("n_read", [1, 5, 12])
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("changed", SWITCHES, ids=str)
def test_scores_equal_the_models(changed: dict[str, Any], kind: Any, n_read: int) -> None:
    model = random_model(ModelConfig(**SIZES | changed))
    ids = torch.randint(0, 50, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(ids[None])[0]
    cache = kind(model).make_cache(n_rows=3)
    found = in_pieces(cache, ids.tolist(), n_read, model.config.n_recent)
    torch.testing.assert_close(torch.from_numpy(found.logits), expected, atol=2e-5, rtol=2e-5)
    totals = torch.from_numpy(found.logsumexp)
    torch.testing.assert_close(totals, expected.logsumexp(1), atol=2e-5, rtol=2e-5)
