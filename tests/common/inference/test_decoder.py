"""Generation: with the cache as without, alone as among others, and what is never sampled."""

import math
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from common.inference.backend import make_backend
from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder, Token, generate
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import CharTokenizer, Tokenizer
from tests.common.inference.passes import SHAPES, counted, next_tokens
from tests.tiny import byte_tokenizer, random_model, successor_model

BYTES = byte_tokenizer()
ABC = CharTokenizer(("a", "b", "c"))
LIKELIEST = GenerateConfig(max_new_tokens=6, temperature=0)


def ids_after(
    model: GPT, prompt: list[int], config: GenerateConfig, tokenizer: Tokenizer
) -> list[int]:
    return [
        token.idx for token in generate(Decoder(make_backend(model), tokenizer), prompt, config)
    ]


def greedy_without_cache(model: GPT, prompt: list[int], n_new: int) -> list[int]:
    """Return the ids that the whole network, run anew for each, thinks likeliest."""
    ids, start, block_size = list(prompt), 0, model.config.block_size
    for _ in range(n_new):
        while len(ids) - start > block_size:
            start += math.ceil(block_size / 2)
        with torch.inference_mode():
            logits = model(torch.tensor([ids[start:]]))
        ids.append(int(logits[0, -1, :256].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("block_size", [8, 7])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tied_head": False},
        {"positions": "learned"},
        {"positions": "learned", "tied_head": False, "n_kv_head": 1},
        {"n_kv_head": 2},
        {"attention": "manual", "n_kv_head": 2},
        {"norm_first": False},
        ARCHITECTURES["gpt2"] | {"norm_first": False, "tied_head": False},
        ARCHITECTURES["gpt2"],
    ],
    ids=str,
)
def test_greedy_generation_with_the_cache_equals_that_without(
    changed: dict[str, Any], block_size: int
) -> None:
    config = ModelConfig(
        vocab_size=256 + 5, block_size=block_size, n_layer=2, n_head=4, n_embd=16, **changed
    )
    model = random_model(config)
    with torch.no_grad():
        model.wte.weight.mul_(0.1)  # else a tied head would only repeat the last id
        # end-of-text scores 0, which is never the most here
        (model.wte if config.tied_head else model.lm_head).weight[BYTES.eot_id] = 0
    greedy = GenerateConfig(max_new_tokens=5 * block_size, temperature=0)
    seen: set[int] = set()
    for n_prompt in (1, 2, 8, 9, 40):
        prompt = list(range(n_prompt, 2 * n_prompt))
        written = ids_after(model, prompt, greedy, BYTES)
        assert written == greedy_without_cache(model, prompt, 5 * block_size)
        seen |= set(written)
    assert len(seen) > 2  # not one id over and over, on which anything would agree


def test_ids_are_sampled_as_often_as_their_probabilities_say() -> None:
    scores = {"a": math.log(6.0), "b": math.log(3.0), "c": math.log(1.0)}
    never = dict.fromkeys(ABC.special_tokens, -50.0)
    model = successor_model(ABC, dict.fromkeys("abc", scores | never))
    config = GenerateConfig(max_new_tokens=2000, temperature=1.0, top_p=1.0)
    written = ids_after(model, [0], config, ABC)
    shares = [written.count(idx) / 2000 for idx in range(3)]
    # 2000 draws: the standard error is about 0.011
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_the_same_seed_gives_the_same_ids_and_another_seed_others() -> None:
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16)
    )

    def written(seed: int) -> list[int]:
        config = GenerateConfig(max_new_tokens=30, temperature=1.5, seed=seed)
        return ids_after(model, [1, 2, 3], config, BYTES)

    torch.manual_seed(1)
    first = written(seed=5)
    torch.manual_seed(2)  # the generator is its own
    assert written(seed=5) == first
    assert written(seed=6) != first


def test_end_of_text_is_the_last_token() -> None:
    model = successor_model(
        ABC, {"a": {"b": 9}, "b": {"c": 9}, "c": {"<|endoftext|>": 9}, "<|endoftext|>": {"a": 9}}
    )
    assert ids_after(model, [0], LIKELIEST, ABC) == [1, 2, ABC.eot_id]


def test_an_empty_prompt_begins_a_document() -> None:
    model = successor_model(ABC, {"<|endoftext|>": {"c": 9}, "c": {"a": 9}, "a": {"a": 9}})
    assert ids_after(model, [], LIKELIEST, ABC) == [2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_that_stand_for_no_text_are_never_sampled(temperature: float) -> None:
    best = {"<|user|>": 90.0, "<|end|>": 80.0, "b": 40.0}
    model = successor_model(ABC, {"a": best, "b": best})
    config = GenerateConfig(max_new_tokens=5, temperature=temperature)
    assert ids_after(model, [0], config, ABC) == [1] * 5


def test_max_new_tokens_are_generated_and_no_more() -> None:
    model = successor_model(ABC, {"a": {"a": 9}})
    config = GenerateConfig(max_new_tokens=50, temperature=0)
    assert ids_after(model, [0], config, ABC) == [0] * 50


@pytest.mark.parametrize("changed", SHAPES, ids=str)
def test_a_row_gets_the_same_tokens_alone_and_among_others(changed: dict[str, Any]) -> None:
    shape = {"block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **(shape | changed)))
    prompts = [list(range(1, 1 + n)) for n in (1, 2, 3, 23, 24, 60, 5, 5)]
    configs = [GenerateConfig(temperature=1.2, top_p=0.99, seed=seed) for seed in range(8)]
    alone = []
    for prompt, config in zip(prompts, configs, strict=True):
        decoder = Decoder(make_backend(model), BYTES, n_rows=1)
        decoder.admit(0, prompt, config, top_logprobs=2)
        alone.append(next_tokens(decoder, 0, 40))
    together = Decoder(make_backend(model), BYTES, n_rows=9)
    got: dict[int, list[Token]] = {row: [] for row in range(8)}
    for step in range(40 + 7):  # one joins at each step, and leaves after its 40 tokens
        if step < 8:
            together.admit(step, prompts[step], configs[step], top_logprobs=2)
        for row, token in together.step().items():
            got[row].append(token)
            if len(got[row]) == 40:
                together.release(row)
    assert [got[row] for row in range(8)] == alone  # to the last bit of every logprob


def test_pytorchs_operators_give_the_same_tokens() -> None:
    # as on GPUs, where it cannot be tested here
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32)
    )
    steps = []
    for network in (CpuBackend(model), TorchBackend(model)):
        decoder = Decoder(network, BYTES, 6)
        for row in (1, 2, 4):
            decoder.admit(row, [7, 8], GenerateConfig(seed=row))
        steps.append([{n: t.idx for n, t in decoder.step().items()} for _ in range(30)])
    assert steps[0] == steps[1]


@pytest.mark.parametrize("n_others", [1, 4])
def test_pytorchs_operators_give_a_row_the_same_bits_whatever_the_others(n_others: int) -> None:
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32)
    )
    tokens = []
    for others in (0, n_others):
        decoder = Decoder(TorchBackend(model), BYTES, 6)
        decoder.admit(3, [7, 8], GenerateConfig(seed=3), top_logprobs=2)
        for row in range(others):
            decoder.admit(row if row < 3 else 5, [row] * (row + 3), GenerateConfig(seed=row))
        tokens.append(next_tokens(decoder, 3, 30))
    assert tokens[0] == tokens[1]


def test_equal_prompts_with_other_seeds_go_together_as_alone() -> None:
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32)
    )
    decoder = Decoder(make_backend(model), BYTES, n_rows=5)
    for row in range(5):
        decoder.admit(row, [1, 2, 3], GenerateConfig(temperature=1.5, seed=row))
    steps = [decoder.step() for _ in range(30)]
    for row in range(5):
        config = GenerateConfig(temperature=1.5, seed=row, max_new_tokens=30)
        alone = ids_after(model, [1, 2, 3], config, BYTES)
        assert [step[row].idx for step in steps][: len(alone)] == alone


@pytest.mark.parametrize("kind", [CpuBackend, TorchBackend])
def test_a_prompt_that_another_row_has_prefilled_is_not_prefilled_again(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32)
    )
    network, prompt = kind(model), list(range(20))
    n_computed = counted(network, monkeypatch)

    def alone(seed: int) -> list[int]:
        decoder = Decoder(kind(model), BYTES, 1)
        decoder.admit(0, prompt, GenerateConfig(temperature=1.5, seed=seed))
        return [token.idx for token in next_tokens(decoder, 0, 8)]

    decoder = Decoder(network, BYTES, 4)
    got: list[list[int]] = [[], [], [], []]
    for n_steps in range(13):  # the text of row 2 goes on before row 0 begins, that before row 3
        for row, begins in ((2, 0), (0, 4), (3, 5)):
            if n_steps == begins:
                decoder.admit(row, prompt, GenerateConfig(temperature=1.5, seed=row))
        for row, token in decoder.step().items():
            got[row].append(token.idx)
            if len(got[row]) == 8:
                decoder.release(row)
    assert [got[row] for row in (0, 2, 3)] == [alone(row) for row in (0, 2, 3)]
    assert n_computed[0] == 20
    assert max(n_computed[1:]) <= 4  # a token for each row


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_the_networks_own_whatever_the_filters(temperature: float) -> None:
    scores = {"a": math.log(6.0), "b": math.log(3.0), "c": math.log(1.0)}
    never = dict.fromkeys(ABC.special_tokens, -50.0)
    model = successor_model(ABC, dict.fromkeys("abc", scores | never))
    config = GenerateConfig(temperature=temperature, top_k=2, repetition_penalty=1.1)
    decoder = Decoder(make_backend(model), ABC, n_rows=1)
    decoder.admit(0, [0], config, top_logprobs=2)
    expected = {0: math.log(0.6), 1: math.log(0.3)}
    for token in next_tokens(decoder, 0, 10):
        assert token.logprob == pytest.approx(expected[token.idx], abs=1e-5)
        assert dict(token.top_logprobs) == pytest.approx(expected, abs=1e-5)
        assert [idx for idx, _ in token.top_logprobs] == [0, 1]


def test_the_repetition_penalty_counts_prompt_and_new_text() -> None:
    likes = {"a": 5.0, "b": 4.0, "c": 3.0}
    model = successor_model(ABC, dict.fromkeys("abc", likes))
    config = GenerateConfig(max_new_tokens=4, temperature=0, repetition_penalty=2.0)
    # a is in the prompt: 2.5; then b is: 2; then c: 1.5; then a has the most again
    assert ids_after(model, [0], config, ABC) == [1, 2, 0, 0]


def test_the_frequency_penalty_counts_new_text_alone_and_breaks_any_loop() -> None:
    model = successor_model(ABC, {"a": {"a": 2.5}})  # all else has 0
    config = GenerateConfig(max_new_tokens=9, temperature=0, frequency_penalty=1.0)
    # the prompt's are not counted; after three of the answer's own a has -0.5
    assert ids_after(model, [0, 0, 0, 0], config, ABC)[:4] == [0, 0, 0, 1]


def test_a_busy_row_takes_no_other_text_and_a_released_one_does() -> None:
    model = successor_model(ABC, {"a": {"b": 9}, "b": {"a": 9}})
    decoder = Decoder(make_backend(model), ABC, n_rows=2)
    decoder.admit(1, [0], LIKELIEST)
    with pytest.raises(ValueError, match="row 1 is busy"):
        decoder.admit(1, [0], LIKELIEST)
    assert decoder.step()[1].idx == 1
    decoder.release(1)
    assert decoder.step() == {}
    decoder.admit(1, [1], LIKELIEST)
    assert decoder.step()[1].idx == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_in_words(value: float) -> None:
    model = successor_model(ABC, {"a": {"b": 9}})
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    with pytest.raises(CheckpointError, match="training has diverged"):
        ids_after(model, [0], LIKELIEST, ABC)


def test_a_generation_that_is_closed_leaves_its_row_free() -> None:
    decoder = Decoder(make_backend(successor_model(ABC, {"a": {"b": 9}, "b": {"a": 9}})), ABC)
    for _ in range(2):
        tokens = generate(decoder, [0], LIKELIEST)
        assert next(tokens).idx == 1
        tokens.close()
