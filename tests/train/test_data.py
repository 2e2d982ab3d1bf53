"""Where training windows begin, and what is in them."""

import threading
import time

import numpy as np
import pytest

from common.dataset import DataFolder
from train.batches.prefetcher import Prefetcher
from train.data import cut_windows, window_starts
from train.trainer import micro_batch_rows

IDS = np.arange(100, 200, dtype=np.uint16)


def starts(
    seed: int = 1337, step: int = 0, n_rows: int = 4, n_tokens: int = 1000, block_size: int = 8
) -> list[int]:
    return [int(start) for start in window_starts(seed, step, n_rows, n_tokens, block_size)]


def test_windows_hold_one_token_more_than_a_row() -> None:
    windows = cut_windows(IDS, np.array([0, 3, 91]), 8)
    assert windows.tolist() == [list(range(s, s + 9)) for s in (100, 103, 191)]


def test_large_ids_keep_their_value() -> None:
    ids = np.array([65_535, 65_534, 0], np.uint16)
    assert cut_windows(ids, np.array([0]), 2).tolist() == [[65_535, 65_534, 0]]


def test_every_window_is_drawn_and_none_beyond_the_last() -> None:
    # 20 tokens hold windows of 8 + 1 that begin at 0 to 11
    assert set(starts(n_rows=2000, n_tokens=20)) == set(range(12))


def test_where_one_window_fits_it_is_that_one() -> None:
    assert starts(n_tokens=9) == [0, 0, 0, 0]


def test_windows_are_drawn_evenly() -> None:
    counts = np.bincount(starts(n_rows=12_000, n_tokens=20), minlength=12)
    # 1000 each expected, with a standard deviation of 30
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_same_seed_and_step_give_the_same_windows() -> None:
    assert starts(step=7) == starts(step=7)


def test_fewer_rows_are_the_first_of_more() -> None:
    assert starts(n_rows=64)[:4] == starts(n_rows=4)


def test_other_steps_and_seeds_give_other_windows() -> None:
    drawn = [tuple(starts(step=step)) for step in range(200)]
    drawn += [tuple(starts(seed=seed)) for seed in range(200)]
    assert len(set(drawn)) == 400


def test_steps_do_not_repeat_each_other_moved_on() -> None:
    # with the step in the counter's lowest word, step 1 would be step 0 without its first rows
    first, second = starts(step=0, n_rows=64), starts(step=1, n_rows=64)
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
    assert starts(seed, step, n_rows=5, n_tokens=1_000_000, block_size=256) == expected


def test_windows_lie_in_the_data(data: DataFolder) -> None:
    ids = data.tokens("train")
    drawn = window_starts(1, 2, 50, len(ids), 16)
    windows = cut_windows(ids, drawn, 16)
    assert windows.shape == (50, 17)
    for window, start in zip(windows, drawn, strict=True):
        assert window.tolist() == ids[start : start + 17].tolist()


@pytest.mark.parametrize(
    ("n_rows", "most", "expected"),
    [(12, 12, 12), (12, 100, 12), (12, 11, 6), (12, 5, 4), (12, 1, 1), (12, 0, 1), (7, 6, 4),
     (127, 64, 64), (127, 32, 32), (36, 8, 6), (22, 4, 4), (15, 2, 2), (23, 4, 4)],
)  # fmt: skip
def test_rows_of_a_micro_batch_divide_those_of_a_step_where_that_costs_little(
    n_rows: int, most: int, expected: int
) -> None:
    assert micro_batch_rows(n_rows, most) == expected


def test_what_is_made_ahead_is_what_each_step_asks_for() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    prefetcher = Prefetcher(make, n_ahead=2)
    # as a run goes that returns to an earlier step, and then jumps ahead
    wanted = [0, 1, 2, 3, 1, 2, 3, 50, 51]
    assert [prefetcher.get(step) for step in wanted] == [step * step for step in wanted]
    prefetcher.close()
    assert set(made) <= {0, 1, 2, 3, 4, 5, 50, 51, 52, 53}


def test_the_next_steps_are_made_while_this_one_is_at_work_and_no_more_of_them() -> None:
    made: list[int] = []
    prefetcher = Prefetcher(made.append, n_ahead=2)
    prefetcher.get(0)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2]
    prefetcher.close()


def test_an_error_in_the_background_is_raised_where_its_step_is_asked_for() -> None:
    def make(step: int) -> int:
        return 6 // (step - 2)

    prefetcher = Prefetcher(make, n_ahead=2)
    assert [prefetcher.get(0), prefetcher.get(1)] == [-3, -6]
    with pytest.raises(ZeroDivisionError):
        prefetcher.get(2)
    assert prefetcher.get(3) == 6
    prefetcher.close()


@pytest.mark.parametrize("n_ahead", [0, 1, 3])
def test_no_thread_is_left_and_without_any_ahead_none_is_made(n_ahead: int) -> None:
    before = set(threading.enumerate())
    prefetcher = Prefetcher(lambda step: step, n_ahead=n_ahead)
    assert prefetcher.get(7) == 7
    assert len(set(threading.enumerate()) - before) == min(n_ahead, 1)
    prefetcher.close()
    assert set(threading.enumerate()) == before
