"""Scores -> the ids to choose among and their weights, then one drawn from them.

The filters work in this order, each on what the one before it left:

    repetition penalty -> temperature -> top-k -> top-p -> min-p

Top-k and top-p each keep the shortest beginning, in order of probability, that has k ids or that
share of the probability. Ids are counted into bins by their weight, and only the bin in which the
beginning ends is sorted: to sort 50,257 ids would take longer than everything else together.

Sources: repetition penalty, Keskar et al. 2019, section 4.1 (arXiv:1909.05858); top-p, Holtzman et
al. 2020, section 3.1 (arXiv:1904.09751); min-p, Nguyen et al. 2024, section 3 (arXiv:2407.01082).
"""

import numpy as np
import numpy.typing as npt

from common.inference.config import GenerateConfig

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

LEAST_TEMPERATURE = 1e-30  # below it 0 / temperature is no number in float32
DRAW_BLOCK = 512
BITS_IN_A_BIN = 18  # of a float32's 32: a bin is 3% wide, and 4,065 hold all up to 1


def apply_repetition_penalty(scores: Floats, seen: npt.NDArray[np.bool_], penalty: float) -> Floats:
    """Return scores (V,) with those of ``seen`` (V,) ids made less likely, where penalty > 1."""
    made_less = np.where(scores > 0, scores / penalty, scores * penalty)
    return np.where(seen, made_less, scores)


def filter_logits(
    scores: Floats, config: GenerateConfig, seen: npt.NDArray[np.bool_] | None = None
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Return the ids (n,) to choose among and weights (n,) that are as their probabilities.

    From scores (V,); a score of -inf is never chosen. They come in no order that means anything,
    but always in the same. ``seen`` (V,) says which ids the text holds, for the repetition penalty.
    """
    if seen is not None and config.repetition_penalty != 1:
        scores = apply_repetition_penalty(scores, seen, config.repetition_penalty)
    if config.temperature == 0:
        return np.array([scores.argmax()]), np.ones(1)
    # from the largest down: a temperature near 0 must not make infinities to subtract
    weights = scores - scores.max()
    with np.errstate(over="ignore"):  # to -inf, whose weight is 0 as it should be
        weights /= max(config.temperature, LEAST_TEMPERATURE)
    np.exp(weights, out=weights)  # the likeliest has 1
    ids: Ids | None = None  # all
    if 0 < config.top_k < len(weights):
        ids = shortest(weights, None, config.top_k)
        weights = weights[ids]
    if config.top_p < 1:
        counted = weights.astype(np.float64)
        first = shortest(weights, counted, config.top_p * float(counted.sum()))
        ids, weights = (first if ids is None else ids[first]), weights[first]
    if config.min_p:
        likely = np.flatnonzero(weights >= config.min_p)  # the likeliest has 1
        ids, weights = (likely if ids is None else ids[likely]), weights[likely]
    if ids is None:
        ids = np.arange(len(weights))
    return ids, weights.astype(np.float64)


def shortest(
    weights: npt.NDArray[np.float32], counted: npt.NDArray[np.float64] | None, enough: float
) -> Ids:
    """Return where the largest ``weights`` (n,) are, so many that ``counted`` adds up to enough.

    Without ``counted`` each counts 1. At least one is kept; all where they never add up to it. Of
    equal weights those at smaller places come first.
    """
    # floats from 0 on are ordered as their bits: what is left of these is the number of a bin
    bins = weights.view(np.int32) >> BITS_IN_A_BIN
    reached = np.cumsum(np.bincount(bins, counted)[::-1])  # from the largest down
    n_bins = int(np.searchsorted(reached, enough))
    if n_bins == len(reached):
        return np.arange(len(weights))
    last = len(reached) - 1 - n_bins
    have = reached[n_bins - 1] if n_bins else 0.0
    group = np.flatnonzero(bins == last)
    group = group[np.argsort(-weights[group], kind="stable")]
    amounts = np.ones(len(group)) if counted is None else counted[group]
    n_more = int(np.searchsorted(have + np.cumsum(amounts), enough)) + 1
    is_first = bins > last
    is_first[group[:n_more]] = True
    return np.flatnonzero(is_first)


def sample(ids: Ids, weights: npt.NDArray[np.float64], share: float) -> int:
    """Return the id at which the weights, added up in order, pass ``share`` of [0, 1) of all.

    First blocks of them are added up, then those of one block: to add up 50,257 in order would take
    a third of all that choosing takes.
    """
    if len(ids) == 1:
        return int(ids[0])
    of_blocks = np.add.reduceat(weights, np.arange(0, len(ids), DRAW_BLOCK))
    block, rest = _pass(of_blocks, share * float(of_blocks.sum()))
    first = block * DRAW_BLOCK
    place, _ = _pass(weights[first : first + DRAW_BLOCK], rest)
    return int(ids[first + place])


def _pass(amounts: npt.NDArray[np.float64], enough: float) -> tuple[int, float]:
    """Return where the amounts, added up in order, pass ``enough``, and what is left of it there.

    Where they never do, by rounding: at the last that is not 0.
    """
    reached = np.cumsum(amounts)
    place = int(np.searchsorted(reached, enough, side="right"))
    if place == len(amounts):
        place = int(np.searchsorted(reached, reached[-1]))
    return place, enough - (float(reached[place - 1]) if place else 0.0)
