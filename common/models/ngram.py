"""Which row of an n-gram table the last few ids have: a hash, so that tables stay small.

    ids ... a b c  ->  hash(b c) of the table of pairs, hash(a b c) of that of triples ...

A small network spends its first thousand steps on learning which ids follow which few. Looked up in
tables instead, that costs no arithmetic. N-grams with the same hash share a row, or the one that
the text has most often has it alone: then others, and those that it has seldom, have none.

Rows may be narrower than the network: side by side, one linear map takes them to its channels. So
they learn as much in a quarter of the memory, and there can be more of them.

Sources: hashed n-gram features, Joulin et al. 2016, section 2.2 (arXiv:1607.01759); beside the
embeddings of a transformer, Huang et al. 2025 (arXiv:2501.16975); narrow rows and a map, Lan et al.
2020, section 3.1 (arXiv:1909.11942).
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.config import ModelConfig

Ids = TypeVar("Ids", Tensor, npt.NDArray[np.int64])

# Odd 64-bit numbers without pattern; products wrap around, the high bits are mixed best.
# Source: Knuth, The Art of Computer Programming, volume 3, section 6.4 (multiplicative hashing).
STEP, MIX, TAG_MIX = 0x5851F42D4C957F2D, -0x61C8864680B583EB, 0x2545F4914F6CDD1D
NO_TAG = -1
MOST_COUNTED = 1 << 23  # ids: with tables of four lengths some 90 bytes and 0.2 us of each


def shifted_ids(idx: Tensor, n: int) -> list[Tensor]:
    """Return n tensors like ``idx`` (..., T): the ids, those one before ...; 0 before the first."""
    T = idx.shape[-1]  # noqa: N806
    return [F.pad(idx, (j, 0))[..., :T] for j in range(n)]


def ngram_keys(recent: Sequence[Ids]) -> list[Ids]:
    """Return a number for the last 2, 3 ... ids each; ``recent`` is shifted_ids'.

    NumPy's arrays of int64 wrap around as PyTorch's do, and small ones take less time.
    """
    keys, key = [], recent[0]
    for before in recent[1:]:
        key = key * STEP + before + 1
        keys.append(key)
    return keys


def row_of(keys: Ids, n_rows: int) -> Ids:
    """Return the rows, below ``n_rows``, that ngram_keys' numbers have."""
    return (keys * MIX >> 33 & 0x7FFFFFFF) % n_rows


def tag_of(keys: Ids) -> Ids:
    """Return what tells n-grams with the same row apart: 31 bits of another hash."""
    return keys * TAG_MIX >> 33 & 0x7FFFFFFF


class NgramTable(nn.Embedding):
    """Rows for n-grams of one length; with ``tags``, only for those whose tag their row has."""

    tags: Tensor | None

    def __init__(self, n_rows: int, width: int, *, is_tagged: bool) -> None:
        super().__init__(n_rows, width, _weight=torch.zeros(n_rows, width))
        tags = torch.full((n_rows,), NO_TAG, dtype=torch.int32)
        self.register_buffer("tags", tags if is_tagged else None)

    def forward(self, keys: Tensor) -> Tensor:
        """Return (..., width) for keys (...); 0 where an n-gram has no row."""
        rows = row_of(keys, self.num_embeddings)
        found = super().forward(rows)
        if self.tags is None:
            return found
        return found * (self.tags[rows] == tag_of(keys)).unsqueeze(-1)


def make_tables(config: ModelConfig) -> tuple[nn.ModuleList, nn.Linear | None]:
    """Return a table for each length of n-grams, and the map of narrow rows to ``n_embd``."""
    width, is_tagged = config.ngram_dim or config.n_embd, config.ngram_min_count > 0
    tables = [
        NgramTable(config.ngram_rows, width, is_tagged=is_tagged) for _ in range(config.ngrams - 1)
    ]
    n_all = config.ngram_dim * len(tables)
    return nn.ModuleList(tables), nn.Linear(n_all, config.n_embd, bias=False) if n_all else None


def embed_ngrams(
    recent: Sequence[Tensor], tables: nn.ModuleList, narrow: nn.Linear | None
) -> list[Tensor]:
    """Return what is added, (..., C) each, to embeddings of ids; ``recent`` is shifted_ids'."""
    found = [table(keys) for table, keys in zip(tables, ngram_keys(recent), strict=True)]
    return found if narrow is None else [narrow(torch.cat(found, dim=-1))]


def tag_ngrams(tables: nn.ModuleList, ids: npt.NDArray[Any], min_count: int) -> None:
    """Give free rows to the n-grams that stand in ``ids`` (N,) so often, the frequent ones first.

    Those of a text met once would only be learned by heart. Of a long text stretches of
    MOST_COUNTED ids in all are counted, evenly spread.
    """
    n_stretches = -(-len(ids) // MOST_COUNTED)
    stretches = np.array_split(ids, n_stretches)
    ids = np.concatenate([s[: MOST_COUNTED // n_stretches] for s in stretches]).astype(np.int64)
    n = len(tables) + 1
    recent = [ids[n - 1 - j :][: max(0, len(ids) - n + 1)] for j in range(n)]
    for table, keys in zip(cast("list[NgramTable]", tables), ngram_keys(recent), strict=True):
        unique, counts = np.unique(keys, return_counts=True)
        by_count = np.argsort(counts, kind="stable")
        often = unique[by_count][np.sort(counts) >= min_count]
        assert table.tags is not None
        tags = np.full(table.num_embeddings, NO_TAG, np.int32)
        tags[row_of(often, len(tags))] = tag_of(often)  # of those with the same row the last stays
        is_free = table.tags == NO_TAG
        table.tags[is_free] = torch.from_numpy(tags).to(table.tags.device)[is_free]
