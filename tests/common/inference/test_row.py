"""Which ids the next prediction sees; drafts change nothing but the number of passes."""

from typing import Any

import pytest
import torch

from common.inference.backend import make_backend
from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder
from common.inference.row import window_start
from common.models.config import GenerateConfig, ModelConfig
from common.tokenizer import CharTokenizer
from tests.common.inference.passes import SHAPES, counted, next_tokens
from tests.tiny import byte_tokenizer, random_model, successor_model

BYTES = byte_tokenizer()
ABC = CharTokenizer(("a", "b", "c"))

# n_tokens -> the first that is seen, for a context of 8, then of 5, then of 1
WINDOWS = [
    (8, [(1, 0), (7, 0), (8, 0), (9, 4), (12, 4), (13, 8), (16, 8), (17, 12), (100, 92)]),
    (5, [(1, 0), (5, 0), (6, 3), (8, 3), (9, 6), (11, 6), (12, 9)]),
    (1, [(1, 0), (2, 1), (3, 2)]),
]


@pytest.mark.parametrize(
    ("block_size", "n_tokens", "start"),
    [(block_size, n, start) for block_size, table in WINDOWS for n, start in table],
)
def test_window_start_worked_out_by_hand(block_size: int, n_tokens: int, start: int) -> None:
    assert window_start(n_tokens, block_size) == start


@pytest.mark.parametrize(
    "changed",
    [*SHAPES, {"ngrams": 3, "ngram_rows": 9, "ngram_dim": 8, "ngram_min_count": 2}],
    ids=str,
)
@pytest.mark.parametrize(
    "config",
    [
        GenerateConfig(temperature=0),
        GenerateConfig(temperature=0.3, seed=1),
        GenerateConfig(temperature=1.2, seed=2),
        GenerateConfig(temperature=0.5, repetition_penalty=1.3, frequency_penalty=0.2, seed=3),
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
