"""Which ids the next prediction sees."""

import pytest

from common.inference.row import window_start

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
