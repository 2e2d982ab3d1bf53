from itertools import product

import torch

from common.models.ngram import ngram_rows, shifted_ids


def test_what_precedes_the_first_id_is_id_0() -> None:
    idx = torch.tensor([[5, 6, 7], [8, 9, 3]])
    assert [recent.tolist() for recent in shifted_ids(idx, 3)] == [
        [[5, 6, 7], [8, 9, 3]],
        [[0, 5, 6], [0, 8, 9]],
        [[0, 0, 5], [0, 0, 8]],
    ]


def test_one_id_has_no_rows() -> None:
    assert ngram_rows(shifted_ids(torch.tensor([1, 2]), 1), 10) == []


def test_a_row_is_a_function_of_its_ids_alone_wherever_they_stand() -> None:
    idx = torch.tensor([4, 1, 2, 3, 9, 1, 2, 3])
    pairs, triples = ngram_rows(shifted_ids(idx, 3), 1 << 15)
    assert pairs[2] == pairs[6]
    assert triples[3] == triples[7]
    assert pairs[3] != pairs[2]


def test_rows_are_below_the_number_asked_for_and_used_evenly() -> None:
    # all pairs of 256 ids over 4,096 rows: 16 each, and by chance at most some 3 times as many
    ids = torch.tensor(list(product(range(256), repeat=2))).flip(1).unbind(1)
    (rows,) = ngram_rows(ids, 4096)
    counts = torch.bincount(rows, minlength=4096)
    assert len(counts) == 4096
    assert int(counts.max()) < 48
    assert int((counts == 0).sum()) < 10


def test_neighbouring_ids_of_large_vocabularies_do_not_share_rows_by_rule() -> None:
    a = torch.arange(1000)
    (rows,) = ngram_rows([a, a + 50_000], 1 << 20)
    assert len(set(rows.tolist())) > 990


def test_arrays_of_numpy_have_the_rows_of_tensors() -> None:
    ids = torch.randint(1 << 40, (3, 100), generator=torch.Generator().manual_seed(0))
    found = ngram_rows([*ids.numpy()], 32_768)
    for own, expected in zip(found, ngram_rows([*ids], 32_768), strict=True):
        assert own.tolist() == expected.tolist()
