"""Filters: distributions worked out by hand, and transformers' processors as another opinion."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.inference.sampling import filter_logits, sample
from common.models.config import GenerateConfig

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
    ({"temperature": 1e-60, "top_p": 1.0}, [0, 1, 0, 0]),
    # of the likeliest's 0.5 these have shares 0.2, 1, 0.3, 0.5
    ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.19}, P),
    ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.21}, [0, 5 / 9, 1.5 / 9, 2.5 / 9]),
    ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.49}, [0, 2 / 3, 0, 1 / 3]),
    # at temperature 2 the shares are their roots, 0.45 1 0.55 0.71: min-p comes after it
    ({"temperature": 2.0, "top_p": 1.0, "min_p": 0.6},
     [0, 2 / (2 + 2**0.5), 0, 2**0.5 / (2 + 2**0.5)]),
    # top-p sees all four, min-p what it leaves: were min-p first, 0.5/0.75 would reach 0.6 alone
    ({"temperature": 1.0, "top_p": 0.6, "min_p": 0.49}, [0, 2 / 3, 0, 1 / 3]),
    # top-k leaves 0.5 0.25 0.15 (of 0.9), of which top-p 0.8 needs two: 0.75/0.9 = 0.83; were
    # min-p first, it would leave the same two and top-p 0.6 one
    ({"temperature": 1.0, "top_k": 3, "top_p": 0.6, "min_p": 0.4}, [0, 2 / 3, 0, 1 / 3]),
]  # fmt: skip


def distribution(
    logits: npt.NDArray[np.float32],
    config: GenerateConfig,
    seen: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    ids, weights = filter_logits(logits, config, seen)
    whole = np.zeros(len(logits))
    whole[ids] = weights / weights.sum()
    return whole


def config_of(changed: dict[str, Any]) -> GenerateConfig:
    return GenerateConfig(**({"temperature": 1.0, "top_p": 1.0} | changed))


@pytest.mark.parametrize(("settings", "expected"), FILTERED)
def test_filters_worked_out_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    logits = np.log(np.array(P, np.float32)) + 3  # softmax does not see the 3
    assert distribution(logits, GenerateConfig(**settings)) == pytest.approx(expected, abs=1e-6)


# seen: a (its score 1, halved to 0.5) and b (its score -1, doubled to -2); c has 0 in any case
@pytest.mark.parametrize(
    ("seen", "expected"),
    [([0, 0, 0], [1, -1, 0]), ([1, 0, 0], [0.5, -1, 0]), ([1, 1, 1], [0.5, -2, 0])],
)
def test_the_repetition_penalty_worked_out_by_hand(seen: list[int], expected: list[float]) -> None:
    logits = np.array([1, -1, 0], np.float32)
    found = distribution(logits, config_of({"repetition_penalty": 2.0}), np.array(seen, np.bool_))
    total = sum(map(math.exp, expected))
    assert found == pytest.approx([math.exp(score) / total for score in expected], abs=1e-6)
    assert logits.tolist() == [1, -1, 0]  # the caller's are as they were


def test_the_frequency_penalty_worked_out_by_hand() -> None:
    logits = np.array([2, -2, 0], np.float32)
    config = config_of({"frequency_penalty": 0.5, "repetition_penalty": 2.0, "temperature": 0.5})
    seen, counts = np.array([True, True, False]), np.array([3, 1, 0], np.float32)
    scores = [(2 / 2 - 1.5) / 0.5, (-2 * 2 - 0.5) / 0.5, 0]  # penalties, then the temperature
    total = sum(map(math.exp, scores))
    ids, weights = filter_logits(logits, config, seen, counts)
    assert ids.tolist() == [0, 1, 2]
    assert weights / weights.sum() == pytest.approx([math.exp(each) / total for each in scores])
    assert logits.tolist() == [2, -2, 0]


def test_the_penalty_comes_before_the_temperature_and_counts_where_it_is_0() -> None:
    logits = np.array([1.0, 0.9], np.float32)
    greedy = config_of({"temperature": 0.0, "repetition_penalty": 2.0})
    assert filter_logits(logits, greedy, np.array([True, False]))[0].tolist() == [1]
    warm = config_of({"temperature": 0.5, "repetition_penalty": 2.0})
    # 0.5 / 0.5 and 0.9 / 0.5
    expected = math.exp(1) / (math.exp(1) + math.exp(1.8))
    assert distribution(logits, warm, np.array([True, False]))[0] == pytest.approx(expected)


def test_what_is_banned_stays_at_zero() -> None:
    logits = np.log(np.array([*P, 0.9], np.float32))
    logits[4] = -np.inf
    for changed in ({}, {"top_k": 5, "top_p": 0.999}, {"temperature": 0.0}, {"min_p": 0.01}):
        assert distribution(logits, config_of(changed))[4] == 0


def test_of_equal_scores_the_smaller_id_is_kept() -> None:
    logits = np.zeros(3000, np.float32)
    logits[2000:] = 1.0
    assert sorted(filter_logits(logits, config_of({"top_k": 3}))[0]) == [2000, 2001, 2002]
    assert sorted(filter_logits(logits, config_of({"top_k": 1002}))[0]) == [
        0,
        1,
        *range(2000, 3000),
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 200, 5000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.2]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_the_same_distribution_as_transformers(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float,
    penalty: float,
) -> None:  # fmt: skip
    from transformers.generation import logits_process as their

    made = np.random.default_rng(seed)
    logits = (made.standard_normal(1000) * spread).astype(np.float32)
    text = made.integers(0, 1000, 50)
    seen = np.zeros(1000, np.bool_)
    seen[text] = True
    config = GenerateConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    steps = [
        their.RepetitionPenaltyLogitsProcessor(penalty),
        their.TemperatureLogitsWarper(temperature),
    ]
    steps += [their.TopKLogitsWarper(top_k)] if top_k else []
    steps += [their.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [their.MinPLogitsWarper(min_p)] if min_p else []
    theirs = torch.from_numpy(logits)[None].double()  # in float32 they miss a top_p by rounding
    for step in steps:
        theirs = step(torch.from_numpy(text)[None], theirs)
    found = distribution(logits, config, seen)
    expected = theirs.softmax(-1)[0].numpy()
    assert np.array_equal(found > 1e-30, expected > 1e-30)  # float32 ends there
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("u", "expected"),
    [(0.0, 7), (0.49, 7), (0.51, 2), (0.74, 2), (0.76, 5), (0.999, 5), (1.0, 5)],
)
def test_an_id_is_sampled_where_the_probabilities_pass_u(u: float, expected: int) -> None:
    ids, probabilities = np.array([7, 2, 5, 9]), np.array([0.5, 0.25, 0.25, 0.0])
    assert sample(ids, probabilities, u) == expected


@settings(max_examples=200, deadline=None)
@given(n=st.integers(2, 3000), u=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_of_many_ids_one_is_sampled_as_summing_them_in_order_says(
    n: int, u: float, seed: int
) -> None:
    # whole numbers, zeros among them, whose sums are exact in any order
    amounts = np.random.default_rng(seed).integers(0, 4, n).astype(np.float64)
    amounts[-1] = 1
    expected = next(i for i in range(n) if amounts[: i + 1].sum() > u * amounts.sum())
    assert sample(np.arange(n), amounts, u) == expected
