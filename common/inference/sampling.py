"""Logits -> the ids to sample from and their weights, then one sampled id.

The filters work in this order, each on what the one before it left:

    repetition penalty -> frequency penalty -> temperature -> top-k -> top-p -> min-p

Top-k and top-p each keep the shortest beginning, in order of probability, that has k ids or that
share of the probability. Ids are counted into bins by their weight, and only the bin in which the
beginning ends is sorted: to sort 50,257 ids would take longer than everything else together.

Sources: repetition penalty, Keskar et al. 2019, section 4.1 (arXiv:1909.05858); frequency penalty,
OpenAI's API, whose largest is 2; top-p, Holtzman et
al. 2020, section 3.1 (arXiv:1904.09751); min-p, Nguyen et al. 2024, section 3 (arXiv:2407.01082).
"""

import numpy as np
import numpy.typing as npt

from common.models.config import GenerateConfig

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

MIN_TEMPERATURE = 1e-30  # below it 0 / temperature is no number in float32
CUMSUM_BLOCK = 512
BIN_SHIFT = 18  # of a float32's 32 bits: a bin is 3% wide, and 4,065 hold all up to 1


def filter_logits(
    logits: Floats,
    config: GenerateConfig,
    seen: npt.NDArray[np.bool_] | None = None,
    counts: npt.NDArray[np.float32] | None = None,
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Return the ids (n,) to sample from and weights (n,) that are as their probabilities.

    From logits (V,); one of -inf is never sampled. They come in no order that means anything, but
    always in the same. ``seen`` (V,) says which ids the text holds, for the repetition penalty,
    ``counts`` (V,) how often the new text does, for the frequency penalty.
    """
    if seen is not None and (penalty := config.repetition_penalty) != 1:
        logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    if counts is not None:
        logits = logits - config.frequency_penalty * counts
    if config.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    # from the largest down: a temperature near 0 must not make infinities to subtract
    weights = logits - logits.max()
    with np.errstate(over="ignore"):  # to -inf, whose weight is 0 as it should be
        weights /= max(config.temperature, MIN_TEMPERATURE)
    np.exp(weights, out=weights)  # the likeliest has 1
    ids: Ids | None = None  # all
    if 0 < config.top_k < len(weights):
        ids = top_ids(weights, None, config.top_k)
        weights = weights[ids]
    if config.top_p < 1:
        p = weights.astype(np.float64)
        first = top_ids(weights, p, config.top_p * float(p.sum()))
        ids, weights = (first if ids is None else ids[first]), weights[first]
    if config.min_p:
        likely = np.flatnonzero(weights >= config.min_p)  # the likeliest has 1
        ids, weights = (likely if ids is None else ids[likely]), weights[likely]
    if ids is None:
        ids = np.arange(len(weights))
    return ids, weights.astype(np.float64)


def top_ids(
    weights: npt.NDArray[np.float32], amounts: npt.NDArray[np.float64] | None, total: float
) -> Ids:
    """Return where the largest ``weights`` (n,) are, as many as add up to ``total`` of ``amounts``.

    Without ``amounts`` each counts 1. At least one is kept; all where they never add up to it. Of
    equal weights those with smaller ids come first.
    """
    # floats from 0 on are ordered as their bits: what is left of these is the number of a bin
    bins = weights.view(np.int32) >> BIN_SHIFT
    cumsum = np.cumsum(np.bincount(bins, amounts)[::-1])  # from the largest down
    n_bins = int(np.searchsorted(cumsum, total))
    if n_bins == len(cumsum):
        return np.arange(len(weights))
    last_bin = len(cumsum) - 1 - n_bins
    before = cumsum[n_bins - 1] if n_bins else 0.0
    in_bin = np.flatnonzero(bins == last_bin)
    in_bin = in_bin[np.argsort(-weights[in_bin], kind="stable")]
    of_bin = np.ones(len(in_bin)) if amounts is None else amounts[in_bin]
    n_more = int(np.searchsorted(before + np.cumsum(of_bin), total)) + 1
    is_top = bins > last_bin
    is_top[in_bin[:n_more]] = True
    return np.flatnonzero(is_top)


def sample(ids: Ids, weights: npt.NDArray[np.float64], u: float) -> int:
    """Return the id at which the weights' cumulative sum passes ``u``, in [0, 1), of the whole.

    First blocks of them are summed, then one block's: 50,257 in order would take a third of all.
    """
    if len(ids) == 1:
        return int(ids[0])
    of_blocks = np.add.reduceat(weights, np.arange(0, len(ids), CUMSUM_BLOCK))
    block, rest = _invert_cdf(of_blocks, u * float(of_blocks.sum()))
    first = block * CUMSUM_BLOCK
    index, _ = _invert_cdf(weights[first : first + CUMSUM_BLOCK], rest)
    return int(ids[first + index])


def _invert_cdf(weights: npt.NDArray[np.float64], total: float) -> tuple[int, float]:
    """Return where the cumulative sum passes ``total``, and what of it is left there.

    Where it never does, by rounding: at the last weight that is not 0.
    """
    cumsum = np.cumsum(weights)
    index = int(np.searchsorted(cumsum, total, side="right"))
    if index == len(weights):
        index = int(np.searchsorted(cumsum, cumsum[-1]))
    return index, total - (float(cumsum[index - 1]) if index else 0.0)
