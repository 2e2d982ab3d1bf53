"""Drafts change nothing but the number of passes."""

from typing import Any

import pytest
import torch

from common.inference.config import GenerateConfig
from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder
from common.inference.selector import make_backend
from common.models.config import ModelConfig
from common.tokenizer import CharTokenizer
from tests.common.inference.passes import SHAPES, counted, next_tokens
from tests.tiny import byte_tokenizer, random_model, successor_model

BYTES = byte_tokenizer()
ABC = CharTokenizer(("a", "b", "c"))


@pytest.mark.parametrize("changed", [*SHAPES, {"ngrams": 3, "ngram_rows": 64}], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        GenerateConfig(temperature=0),
        GenerateConfig(temperature=0.3, seed=1),
        GenerateConfig(temperature=1.2, seed=2),
        GenerateConfig(temperature=0.5, repetition_penalty=1.3, seed=3),
    ],
    ids=lambda config: f"{config.temperature}, {config.repetition_penalty}",
)
def test_drafts_change_nothing(changed: dict[str, Any], config: GenerateConfig) -> None:
    shape = {"block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **(shape | changed)))
    with torch.no_grad():
        model.wte.weight.mul_(0.3)  # less sure of the last id again
    tokens = []
    for max_batch_tokens in (1, 3, 16):
        decoder = Decoder(make_backend(model), BYTES, n_rows=1)
        decoder.cache.max_batch_tokens = max_batch_tokens
        decoder.admit(0, [5, 6, 7, 8] * 4, config, top_logprobs=2)
        tokens.append(next_tokens(decoder, 0, 90))
    assert tokens[1] == tokens[2] == tokens[0]  # to the last bit of every logprob


@pytest.mark.parametrize(("max_batch_tokens", "n_passes"), [(1, 10), (2, 8), (16, 7)])
def test_passes_over_a_text_that_repeats_itself_counted_by_hand(
    max_batch_tokens: int, n_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass for a, b, c, a, b; then one for each, for two, or for two and then for three."""
    after = {"a": {"b": 9.0}, "b": {"c": 9.0}, "c": {"a": 9.0}}
    model = successor_model(ABC, after)
    network = CpuBackend(model)
    passes = counted(network, monkeypatch)
    decoder = Decoder(network, ABC, 1)
    decoder.cache.max_batch_tokens = max_batch_tokens
    decoder.admit(0, [0], GenerateConfig(temperature=0))
    assert [token.idx for token in next_tokens(decoder, 0, 10)] == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert len(passes) == n_passes
    assert max(passes) <= max_batch_tokens
