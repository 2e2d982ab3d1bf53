"""Generation: with the cache as without, filters worked out by hand, what is never chosen."""

import math
from typing import Any

import pytest
import torch

from common.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.generate import filter_logits, generate, window_start
from common.model import GPT
from common.tokenizer import CharTokenizer
from tests.tiny import byte_tokenizer, random_model, successor_model

BYTES = byte_tokenizer()
ABC = CharTokenizer(("a", "b", "c"))
LIKELIEST = GenerateConfig(max_new_tokens=6, temperature=0)


def greedy_without_cache(model: GPT, prompt: list[int], n_new: int) -> list[int]:
    """Return the ids that the whole network, run anew for each, thinks likeliest."""
    ids, start, block_size = list(prompt), 0, model.config.block_size
    for _ in range(n_new):
        while len(ids) - start > block_size:
            start += math.ceil(block_size / 2)
        with torch.inference_mode():
            logits, _ = model(torch.tensor([ids[start:]]))
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
        written = list(generate(model, prompt, greedy, BYTES))
        assert written == greedy_without_cache(model, prompt, 5 * block_size)
        seen |= set(written)
    assert len(seen) > 2  # not one id over and over, on which anything would agree


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


# Probabilities by the logits' order; "b" and "d" are the likeliest.
P = [0.1, 0.5, 0.15, 0.25]
FILTERED: list[tuple[dict[str, Any], list[float]]] = [
    ({"temperature": 1.0, "top_p": 1.0}, P),
    ({"temperature": 0.0}, [0, 1, 0, 0]),
    # squares 0.01 0.25 0.0225 0.0625 over their sum 0.345, all four times 400
    ({"temperature": 0.5, "top_p": 1.0}, [4 / 138, 100 / 138, 9 / 138, 25 / 138]),
    ({"temperature": 1.0, "top_k": 1, "top_p": 1.0}, [0, 1, 0, 0]),
    ({"temperature": 1.0, "top_k": 2, "top_p": 1.0}, [0, 2 / 3, 0, 1 / 3]),
    ({"temperature": 1.0, "top_k": 4, "top_p": 1.0}, P),
    ({"temperature": 1.0, "top_k": 99, "top_p": 1.0}, P),
    ({"temperature": 1.0, "top_p": 0.0}, [0, 1, 0, 0]),
    ({"temperature": 1.0, "top_p": 0.49}, [0, 1, 0, 0]),
    ({"temperature": 1.0, "top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
    ({"temperature": 1.0, "top_p": 0.76}, [0, 5 / 9, 1.5 / 9, 2.5 / 9]),
    ({"temperature": 1.0, "top_p": 0.91}, P),
    # of the two that top-k leaves the first has 2/3
    ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
    # 0.25/0.345 = 0.72 reaches 0.7 alone; at temperature 1 it took two
    ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
    ({"temperature": 1e-40, "top_p": 1.0}, [0, 1, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), FILTERED)
def test_filters_worked_out_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    logits = torch.tensor(P).log() + 3.0  # softmax does not see the 3
    probabilities = filter_logits(logits, GenerateConfig(**settings))
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.float32))


def test_filters_leave_what_is_banned_at_zero() -> None:
    logits = torch.tensor([*P, 0.9]).log()
    logits[4] = float("-inf")
    config = GenerateConfig(temperature=2.0, top_k=5, top_p=0.999)
    assert filter_logits(logits, config)[4] == 0


def test_ids_are_drawn_as_often_as_their_probabilities_say() -> None:
    scores = {"a": math.log(6.0), "b": math.log(3.0), "c": math.log(1.0)}
    never = dict.fromkeys(ABC.special_tokens, -50.0)
    model = successor_model(ABC, dict.fromkeys("abc", scores | never))
    config = GenerateConfig(max_new_tokens=2000, temperature=1.0, top_p=1.0)
    written = list(generate(model, [0], config, ABC))
    shares = [written.count(idx) / 2000 for idx in range(3)]
    # 2000 draws: the standard error is about 0.011
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_the_same_seed_gives_the_same_ids_and_another_seed_others() -> None:
    model = random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16)
    )

    def written(seed: int) -> list[int]:
        config = GenerateConfig(max_new_tokens=30, temperature=1.5, seed=seed)
        return list(generate(model, [1, 2, 3], config, BYTES))

    torch.manual_seed(1)
    first = written(seed=5)
    torch.manual_seed(2)  # the generator is its own
    assert written(seed=5) == first
    assert written(seed=6) != first


def test_end_of_text_stops_and_is_not_yielded() -> None:
    model = successor_model(
        ABC, {"a": {"b": 9}, "b": {"c": 9}, "c": {"<|endoftext|>": 9}, "<|endoftext|>": {"a": 9}}
    )
    assert list(generate(model, [0], LIKELIEST, ABC)) == [1, 2]


def test_an_empty_prompt_begins_a_document() -> None:
    model = successor_model(ABC, {"<|endoftext|>": {"c": 9}, "c": {"a": 9}, "a": {"a": 9}})
    assert list(generate(model, [], LIKELIEST, ABC)) == [2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_that_stand_for_no_text_are_never_chosen(temperature: float) -> None:
    best = {"<|user|>": 90.0, "<|end|>": 80.0, "b": 40.0}
    model = successor_model(ABC, {"a": best, "b": best})
    config = GenerateConfig(max_new_tokens=5, temperature=temperature)
    assert list(generate(model, [0], config, ABC)) == [1] * 5


def test_max_new_tokens_are_written_and_no_more() -> None:
    model = successor_model(ABC, {"a": {"a": 9}})
    config = GenerateConfig(max_new_tokens=50, temperature=0)
    assert list(generate(model, [0], config, ABC)) == [0] * 50
