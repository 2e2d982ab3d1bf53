"""What is in training windows, and that it is there in time."""

import threading
import time

import numpy as np
import pytest

from train.batches.prefetcher import Prefetcher
from train.data import cut_windows
from train.trainer import micro_batch_rows

IDS = np.arange(100, 200, dtype=np.uint16)


def test_windows_hold_one_token_more_than_a_row() -> None:
    windows = cut_windows(IDS, np.array([0, 3, 91]), 8)
    assert windows.tolist() == [list(range(s, s + 9)) for s in (100, 103, 191)]


def test_large_ids_keep_their_value() -> None:
    ids = np.array([65_535, 65_534, 0], np.uint16)
    assert cut_windows(ids, np.array([0]), 2).tolist() == [[65_535, 65_534, 0]]


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
