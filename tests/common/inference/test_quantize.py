"""Weights of one byte: exact where they can be, close where not, the same text among others."""

from typing import Any

import pytest
import torch
from torch import nn

from common.inference.backend import Backend
from common.inference.cpu.backend import CpuBackend
from common.inference.cpu.layout import quantize_int8
from common.inference.decoder import Decoder
from common.models.config import ARCHITECTURES, GenerateConfig, ModelConfig
from sample.score import score_ids
from tests.tiny import byte_tokenizer, random_model

BYTES = byte_tokenizer()
SHAPE: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 64}


def test_weights_that_fit_into_bytes_are_exact() -> None:
    # k/4 with a largest of 127/4 is stored as k
    expected = torch.randint(-127, 128, (40, 24), generator=torch.Generator().manual_seed(0))
    expected[:, 0] = 127
    found, scales = quantize_int8(expected / 4)
    assert torch.equal(found, expected.to(torch.int8))
    assert torch.equal(scales, torch.full((40,), 0.25))


def test_a_matrix_of_zeros_stays_zeros() -> None:
    found, scales = quantize_int8(torch.zeros(3, 4))
    assert found.abs().max() == 0
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"n_embd": 36, "n_head": 3, "bias": True, "positions": "learned", "vocab_size": 65},
        {"mlp": "relu2", "norm_first": False, "n_kv_head": 2, "vocab_size": 300},
        {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 1},  # sums of several parts
        ARCHITECTURES["gpt2"],
    ],
    ids=str,
)
def test_logits_are_those_of_a_model_with_the_rounded_weights(changed: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"vocab_size": 100}
    model = random_model(ModelConfig(**sizes | SHAPE | changed | {"tied_head": False}))
    backend = CpuBackend(model, int8=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                rounded, scales = quantize_int8(module.weight)
                module.weight.copy_(rounded.float() * scales[:, None])
    ids = torch.randint(0, model.config.vocab_size, (32,)).tolist()
    ((_, found),) = backend.make_cache(1).prefill([(0, ids)], 32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.from_numpy(found.logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_close_to_that_in_float(architecture: str) -> None:
    config = ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE | ARCHITECTURES[architecture])
    model = random_model(config)
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (400,), generator=made).tolist()

    def logprobs(backend: Backend) -> torch.Tensor:
        scored = score_ids(backend, [ids], before=BYTES.eot_id, stride=16)
        return torch.tensor([token.logprob for tokens in scored for token in tokens])

    exact, rounded = (logprobs(CpuBackend(model, int8=int8)) for int8 in (False, True))
    # rounding to 1/254 of the largest: each logprob moves by some hundredths of their spread
    assert 0 < (exact - rounded).square().mean().sqrt() / exact.std() < 0.08
    assert abs(float(exact.mean() - rounded.mean())) < 0.02


def test_a_text_is_the_same_alone_and_among_others() -> None:
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE))
    backend = CpuBackend(model, int8=True)
    config = GenerateConfig(temperature=1.0)
    alone, together = (Decoder(backend, BYTES, n_rows) for n_rows in (1, 5))
    alone.admit(0, [1, 2, 3], config)
    for row in range(5):
        together.admit(row, [1, 2, 3] if row == 2 else [row] * (row + 1), config)
    for _ in range(40):
        assert alone.step()[0] == together.step()[2]  # to the last bit of its logprob
