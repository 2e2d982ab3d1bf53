"""The network laid out for generation: the model is its oracle, and rows do not know of others."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from common.cache import KVCache
from common.config import ARCHITECTURES, ModelConfig
from common.model import GPT
from common.network import Network
from common.ngrams import preceding
from common.packed import SMALL, Linear, Packed, Plain, Small, Then, pack
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
    {"mlp": "relu"},
    {"mlp": "relu2"},
    {"ngrams": 4, "ngram_rows": 50},
    {"qk_norm": False},
    {"bias": True},
    {"tied_head": False},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "bias": True, "qk_norm": False},
    ARCHITECTURES["gpt2"],
]


def logits_in_pieces(model: GPT, idx: Tensor, n_read: int) -> Tensor:
    """Return logits (T, V): of the last of ``n_read`` tokens read at once, the rest one by one."""
    network = Network(model)
    cache = KVCache(model.config, 3, like=network.wte)
    with torch.inference_mode():
        recent = preceding(idx, model.config.n_recent)
        first = network.hidden(
            [ids[None, :n_read] for ids in recent], torch.arange(n_read)[None], cache.reading(1)
        )
        logits = [network.logits(first)[0]]
        for position in range(n_read, len(idx)):
            newest = [ids[None, position : position + 1] for ids in recent]
            attend = cache.continuing([(1, position)])
            hidden = network.hidden(newest, torch.tensor([[position]]), attend)
            logits.append(network.logits(hidden)[0])
    return torch.cat(logits)


@pytest.mark.parametrize("n_read", [1, 5, 12])
@pytest.mark.parametrize("changed", SWITCHES, ids=str)
def test_logits_equal_the_models(changed: dict[str, Any], n_read: int) -> None:
    model = random_model(ModelConfig(**SIZES | changed))
    idx = torch.randint(0, 50, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(idx[None])[0]
    torch.testing.assert_close(logits_in_pieces(model, idx, n_read), expected, atol=2e-5, rtol=2e-5)


# (out, in): those of the tiny preset and of gpt2, and odd ones
SHAPES = [
    (384, 128),
    (128, 384),
    (1020, 128),
    (2053, 128),
    (2304, 768),
    (768, 3072),
    (65, 33),
    (7, 5),
    (100, 1),
]
STEPS: list[Then] = ["none", "gelu", "relu", "silu", "add", "mul"]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_a_row_has_the_same_bits_among_any_number_of_others(
    n_out: int, n_in: int, n_threads: int
) -> None:
    torch.manual_seed(0)
    linear = pack(torch.randn(n_out, n_in), torch.randn(n_out))
    is_small = n_out * n_in <= SMALL and n_out % 16 == n_in % 16 == 0
    assert isinstance(linear, Small if is_small else Packed)
    x, other = torch.randn(24, 1, n_in), torch.randn(24, 1, n_out)
    torch.set_num_threads(n_threads)
    try:
        for then in STEPS:
            added = other if then in ("add", "mul") else None
            whole = linear(x, then, added)
            for first, last in pairwise([0, 1, 2, 4, 9, 24]):
                part = None if added is None else added[first:last]
                assert torch.equal(linear(x[first:last], then, part), whole[first:last]), then
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("then", STEPS)
@pytest.mark.parametrize("kind", [Packed, Small, Plain])
def test_a_linear_map_and_what_follows_it(kind: type[Linear], then: Then) -> None:
    torch.manual_seed(0)
    weight, bias, x, other = (torch.randn(shape) for shape in [(9, 7), (9,), (2, 3, 7), (2, 3, 9)])
    added = other if then in ("add", "mul") else None
    y = x.double() @ weight.double().T + bias.double()
    expected = {
        "none": y,
        # Hendrycks and Gimpel 2016, the form with tanh
        "gelu": 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))),
        "relu": y.clamp(min=0),
        "silu": y / (1 + torch.exp(-y)),
        "add": y + other,
        "mul": y * other,
    }[then].float()
    made: Any = kind
    found = made(weight, bias)(x, then, added)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
