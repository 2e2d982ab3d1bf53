from collections import Counter
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.config import ModelConfig
from common.models.ngram import (
    NO_TAG,
    NgramTable,
    make_tables,
    ngram_keys,
    row_of,
    shifted_ids,
    tag_ngrams,
    tag_of,
)


def test_what_precedes_the_first_id_is_id_0() -> None:
    idx = torch.tensor([[5, 6, 7], [8, 9, 3]])
    assert [recent.tolist() for recent in shifted_ids(idx, 3)] == [
        [[5, 6, 7], [8, 9, 3]],
        [[0, 5, 6], [0, 8, 9]],
        [[0, 0, 5], [0, 0, 8]],
    ]


def test_one_id_has_no_rows() -> None:
    assert ngram_keys(shifted_ids(torch.tensor([1, 2]), 1)) == []


def test_a_row_is_a_function_of_its_ids_alone_wherever_they_stand() -> None:
    idx = torch.tensor([4, 1, 2, 3, 9, 1, 2, 3])
    pairs, triples = (row_of(keys, 1 << 15) for keys in ngram_keys(shifted_ids(idx, 3)))
    assert pairs[2] == pairs[6]
    assert triples[3] == triples[7]
    assert pairs[3] != pairs[2]


def test_rows_are_below_the_number_asked_for_and_used_evenly() -> None:
    # all pairs of 256 ids over 4,096 rows: 16 each, and by chance at most some 3 times as many
    ids = torch.tensor(list(product(range(256), repeat=2))).flip(1).unbind(1)
    (keys,) = ngram_keys(ids)
    rows = row_of(keys, 4096)
    counts = torch.bincount(rows, minlength=4096)
    assert len(counts) == 4096
    assert int(counts.max()) < 48
    assert int((counts == 0).sum()) < 10


def test_neighbouring_ids_of_large_vocabularies_do_not_share_rows_by_rule() -> None:
    a = torch.arange(1000)
    (keys,) = ngram_keys([a, a + 50_000])
    assert len(set(row_of(keys, 1 << 20).tolist())) > 990
    assert len(set(tag_of(keys).tolist())) == 1000


def test_arrays_of_numpy_have_the_rows_of_tensors() -> None:
    ids = torch.randint(1 << 40, (3, 100), generator=torch.Generator().manual_seed(0))
    found = ngram_keys([*ids.numpy()])
    for own, expected in zip(found, ngram_keys([*ids]), strict=True):
        assert row_of(own, 32_768).tolist() == row_of(expected, 32_768).tolist()
        assert tag_of(own).tolist() == tag_of(expected).tolist()


# in a table large enough for all, and in one where they compete
@pytest.mark.parametrize("n_rows", [1 << 20, 50])
def test_those_that_the_text_has_often_enough_have_rows_the_most_frequent_first(
    n_rows: int,
) -> None:
    ids = np.random.default_rng(0).zipf(1.3, 3_000).clip(max=40).astype(np.uint16)
    shape = ModelConfig(vocab_size=50, ngrams=4, ngram_rows=n_rows, ngram_dim=2, ngram_min_count=3)
    made, _ = make_tables(shape)
    tag_ngrams(made, ids, 3)
    tables = cast("list[NgramTable]", made)
    text = torch.from_numpy(ids.astype(np.int64))
    for n, (table, keys) in enumerate(
        zip(tables, ngram_keys(shifted_ids(text, 4)), strict=True), start=2
    ):
        torch.nn.init.ones_(table.weight)
        has_row = table(keys)[:, 0].bool().tolist()
        at = range(3, len(ids))  # before, an n-gram reaches back behind the first id
        counts = Counter(tuple(ids[i - n + 1 : i + 1]) for i in at)
        most: dict[int, int] = {}  # the count of the most frequent of those that share a row
        for i in at:
            row = int(row_of(keys[i], n_rows))
            most[row] = max(most.get(row, 0), counts[tuple(ids[i - n + 1 : i + 1])])
        for i in at:
            count = counts[tuple(ids[i - n + 1 : i + 1])]
            if has_row[i] or n_rows > 50:
                assert has_row[i] == (count >= 3)
            assert not has_row[i] or count == most[int(row_of(keys[i], n_rows))]
        assert sum(has_row) > 50
    # of another text only those that find a free row have one; what had a row keeps it
    before = [cast("Tensor", table.tags).clone() for table in tables]
    tag_ngrams(made, ids[::-1].copy(), 1)
    for table, tags in zip(tables, before, strict=True):
        added = (tags == NO_TAG) & (table.tags != NO_TAG)
        assert torch.equal(cast("Tensor", table.tags)[~added], tags[~added])
        assert bool(added.any()) == bool((tags == NO_TAG).any())


# shorter than the longest n-gram, and one whose n-grams all come once
@pytest.mark.parametrize("n", [3, 40])
def test_of_a_short_text_no_n_gram_has_a_row(n: int) -> None:
    shape = ModelConfig(vocab_size=50, ngrams=5, ngram_rows=64, ngram_dim=2, ngram_min_count=2)
    tables, _ = make_tables(shape)
    tag_ngrams(tables, np.arange(n, dtype=np.uint16), 2)
    assert all((table.tags == NO_TAG).all() for table in cast("list[Any]", tables))
