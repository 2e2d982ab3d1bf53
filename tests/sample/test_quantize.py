"""Weights of one byte: close to those in float, exact where they can be, the same among others."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from common.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.generate import Decoder
from common.linear import Then
from common.network import Network
from sample.quantize import Int8
from sample.score import score_ids
from tests.tiny import byte_tokenizer, random_model

BYTES = byte_tokenizer()
SHAPE: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 64}


def test_numbers_that_fit_into_bytes_are_exact() -> None:
    # weights k/4 with a largest of 127/4 are stored as k; so is x, with 127 as its largest
    made = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (40, 24), generator=made) / 4
    x = torch.randint(-127, 128, (3, 1, 24), generator=made).float()
    weight[:, 0], x[:, :, 1] = 127 / 4, -127
    bias = torch.randn(40, generator=made)
    found = Int8(weight, bias)(x)
    torch.testing.assert_close(found, x @ weight.T + bias, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("then", ["none", "gelu", "relu", "silu", "add", "mul"])
@pytest.mark.parametrize(("n_out", "n_in"), [(256, 64), (65, 33), (2053, 128)])
def test_a_row_has_the_same_bits_among_any_number_of_others(
    n_out: int, n_in: int, then: Then
) -> None:
    torch.manual_seed(0)
    linear = Int8(torch.randn(n_out, n_in), torch.randn(n_out))
    x, other = torch.randn(24, 1, n_in), torch.randn(24, 1, n_out)
    added = other if then in ("add", "mul") else None
    whole = linear(x, then, added)
    for first, last in pairwise([0, 1, 3, 8, 24]):
        part = None if added is None else added[first:last]
        assert torch.equal(linear(x[first:last], then, part), whole[first:last])


def test_a_matrix_of_zeros_and_a_row_of_zeros_give_zeros() -> None:
    assert Int8(torch.zeros(3, 4), None)(torch.randn(2, 1, 4)).abs().max() == 0
    assert Int8(torch.randn(3, 4), None)(torch.zeros(2, 1, 4)).abs().max() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_close_to_that_in_float(architecture: str) -> None:
    config = ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE | ARCHITECTURES[architecture])
    model = random_model(config)
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (400,), generator=made).tolist()

    def logprobs(network: Network) -> torch.Tensor:
        scored = score_ids(network, [ids], before=BYTES.eot_id, stride=16)
        return torch.tensor([token.logprob for tokens in scored for token in tokens])

    exact, rounded = logprobs(Network(model)), logprobs(Network(model, Int8))
    # rounding to 1/254 of the largest: each logprob moves by some hundredths of their spread
    assert 0 < (exact - rounded).square().mean().sqrt() / exact.std() < 0.08
    assert abs(float(exact.mean() - rounded.mean())) < 0.02


def test_a_text_is_the_same_alone_and_among_others() -> None:
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE))
    network = Network(model, Int8)
    config = GenerateConfig(temperature=1.0)
    alone, together = (Decoder(model, BYTES, n_rows, network) for n_rows in (1, 5))
    alone.admit(0, [1, 2, 3], config)
    for row in range(5):
        together.admit(row, [1, 2, 3] if row == 2 else [row] * (row + 1), config)
    for _ in range(40):
        assert alone.step()[0] == together.step()[2]
