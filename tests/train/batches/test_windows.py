"""Where windows begin: each token once an epoch; and what runs of format 1 drew."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from common.dataset import DataFolder
from train.batches.sources import WindowSource
from train.batches.windows import drawn_starts, window_starts
from train.config import TrainConfig

T = 8


@pytest.mark.parametrize("n_tokens", [9, 15, 16, 17, 24, 25, 100, 1_000, 1_003])
def test_each_token_is_read_once_an_epoch_but_for_some_at_the_ends(n_tokens: int) -> None:
    n_windows = max(1, n_tokens // T - 1)
    for epoch in range(40):
        starts = np.sort(window_starts(1, epoch * n_windows, n_windows, n_tokens, T))
        assert all(b - a == T for a, b in pairwise(starts.tolist()))  # end to end
        assert starts[0] >= 0
        assert starts[-1] + T + 1 <= n_tokens  # a window has a target more
        assert starts[0] < 2 * T
        assert n_tokens - (starts[-1] + T) <= 2 * T  # what is left out, the last target with it


def test_epochs_have_offsets_and_orders_of_their_own_and_leave_nothing_out_together() -> None:
    n_tokens, n_windows, n_offsets = 1_003, 124, 11
    epochs = [window_starts(1, e * n_windows, n_windows, n_tokens, T) for e in range(400)]
    offsets = [int(starts.min()) for starts in epochs]
    assert min(np.bincount(offsets, minlength=n_offsets)) > 15  # 36 expected, a deviation of 6
    assert len({tuple((starts - starts.min()).tolist()) for starts in epochs}) == 400
    firsts = [int(starts[0] - starts.min()) // T for starts in epochs]
    assert np.mean(firsts) == pytest.approx(61.5, abs=6)  # by chance 1.8 off
    read = np.zeros(n_tokens, np.int64)
    for starts in epochs:
        for start in starts:
            read[start : start + T] += 1
    assert read[:-1].min() > 0  # the last token is a target only
    assert (read[n_offsets - 1 : n_windows * T] == 400).all()


def test_other_seeds_have_other_orders() -> None:
    assert len({tuple(window_starts(seed, 0, 20, 1_000, T).tolist()) for seed in range(200)}) == 200


def test_what_a_window_is_does_not_depend_on_those_asked_for_with_it() -> None:
    together = window_starts(7, 100, 300, 1_003, T).tolist()  # of four epochs
    assert together == [int(window_starts(7, i, 1, 1_003, T)[0]) for i in range(100, 400)]


# What any later version must have too, or resumed runs would change their course.
GOLDEN_ORDER = [
    (1337, 0, [744472, 8728, 784152, 906520, 622616]),
    (1337, 3904, [362008, 756402, 373426, 142770, 641970]),  # the second and third epochs
    (0, 10**9, [213242, 146170, 249082, 454906, 65274]),
]


@pytest.mark.parametrize(("seed", "first", "expected"), GOLDEN_ORDER)
def test_the_order_is_that_of_the_past(seed: int, first: int, expected: list[int]) -> None:
    assert window_starts(seed, first, 5, 1_000_000, 256).tolist() == expected


@dataclass
class Rank:
    """What WindowSource asks of a ProcessGroup."""

    rank: int
    world_size: int


@pytest.mark.parametrize("draws", [False, True])
def test_processes_share_the_windows_of_one(data: DataFolder, draws: bool) -> None:
    config = TrainConfig(tokens_per_step=64)

    def rows(step: int, rank: int, n: int) -> list[list[int]]:
        group = Rank(rank, n)
        source = WindowSource(data, config, 16, group, draws=draws)  # type: ignore[arg-type]
        return source.batch(step).rows.tolist()

    ids = data.tokens("train")
    for step in range(3):
        alone = rows(step, 0, 1)
        assert alone == [each for rank in range(2) for each in rows(step, rank, 2)]
        starts = (
            drawn_starts(1337, step, 4, len(ids), 16)
            if draws
            else window_starts(1337, 4 * step, 4, len(ids), 16)
        )
        assert alone == [ids[start : start + 17].tolist() for start in starts]


def drawn(
    seed: int = 1337, step: int = 0, n_rows: int = 4, n_tokens: int = 1000, block_size: int = 8
) -> list[int]:
    return [int(start) for start in drawn_starts(seed, step, n_rows, n_tokens, block_size)]


def test_every_window_is_drawn_and_none_beyond_the_last() -> None:
    # 20 tokens hold windows of 8 + 1 that begin at 0 to 11
    assert set(drawn(n_rows=2000, n_tokens=20)) == set(range(12))


def test_where_one_window_fits_it_is_that_one() -> None:
    assert drawn(n_tokens=9) == [0, 0, 0, 0]


def test_windows_are_drawn_evenly() -> None:
    counts = np.bincount(drawn(n_rows=12_000, n_tokens=20), minlength=12)
    # 1000 each expected, with a standard deviation of 30
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_same_seed_and_step_give_the_same_windows() -> None:
    assert drawn(step=7) == drawn(step=7)


def test_fewer_rows_are_the_first_of_more() -> None:
    assert drawn(n_rows=64)[:4] == drawn(n_rows=4)


def test_other_steps_and_seeds_give_other_windows() -> None:
    found = [tuple(drawn(step=step)) for step in range(200)]
    found += [tuple(drawn(seed=seed)) for seed in range(200)]
    assert len(set(found)) == 400


def test_steps_do_not_repeat_each_other_moved_on() -> None:
    # with the step in the counter's lowest word, step 1 would be step 0 without its first rows
    first, second = drawn(step=0, n_rows=64), drawn(step=1, n_rows=64)
    assert not any(first[i : i + 3] == second[:3] for i in range(60))


# What any later version must draw too, or resumed runs would change their course.
GOLDEN = [
    (1337, 0, [6857, 427859, 649966, 539557, 476054]),
    (1337, 1, [368142, 36481, 85995, 715185, 362475]),
    (1337, 1_000_000, [354943, 650863, 331929, 290271, 924149]),
    (0, 0, [138779, 272690, 700857, 65244, 928707]),
]


@pytest.mark.parametrize(("seed", "step", "expected"), GOLDEN)
def test_windows_are_those_of_the_past(seed: int, step: int, expected: list[int]) -> None:
    assert drawn(seed, step, n_rows=5, n_tokens=1_000_000, block_size=256) == expected
