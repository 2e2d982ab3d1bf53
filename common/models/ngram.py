"""Which row of an n-gram table the last few ids have: a hash, so that tables stay small.

    ids ... a b c  ->  hash(b c) of the table of pairs, hash(a b c) of that of triples ...

A small network spends its first thousand steps on learning which ids follow which few. Looked up in
tables instead, that costs no arithmetic. N-grams with the same hash share a row.

Rows may be narrower than the network: side by side, one linear map takes them to its channels. So
they learn as much in a quarter of the memory, and there can be more of them.

Sources: hashed n-gram features, Joulin et al. 2016, section 2.2 (arXiv:1607.01759); beside the
embeddings of a transformer, Huang et al. 2025 (arXiv:2501.16975); narrow rows and a map, Lan et al.
2020, section 3.1 (arXiv:1909.11942).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.config import ModelConfig

Ids = TypeVar("Ids", Tensor, npt.NDArray[np.int64])

# Odd 64-bit numbers without pattern; products wrap around, the high bits are mixed best.
# Source: Knuth, The Art of Computer Programming, volume 3, section 6.4 (multiplicative hashing).
STEP, MIX = 0x5851F42D4C957F2D, -0x61C8864680B583EB


def shifted_ids(idx: Tensor, n: int) -> list[Tensor]:
    """Return n tensors like ``idx`` (..., T): the ids, those one before ...; 0 before the first."""
    T = idx.shape[-1]  # noqa: N806
    return [F.pad(idx, (j, 0))[..., :T] for j in range(n)]


def ngram_rows(recent: Sequence[Ids], n_rows: int) -> list[Ids]:
    """Return the rows, below ``n_rows``, of the last 2, 3 ... ids; ``recent`` is shifted_ids'.

    NumPy's arrays of int64 wrap around as PyTorch's do, and small ones take less time.
    """
    rows, key = [], recent[0]
    for before in recent[1:]:
        key = key * STEP + before + 1
        rows.append((key * MIX >> 33 & 0x7FFFFFFF) % n_rows)
    return rows


def make_tables(config: ModelConfig) -> tuple[nn.ModuleList, nn.Linear | None]:
    """Return a table for each length of n-grams, and the map of narrow rows to ``n_embd``."""
    width = config.ngram_dim or config.n_embd
    tables = [torch.zeros(config.ngram_rows, width) for _ in range(config.ngrams - 1)]
    n_all = config.ngram_dim * len(tables)
    narrow = nn.Linear(n_all, config.n_embd, bias=False) if n_all else None
    return nn.ModuleList(nn.Embedding(len(t), width, _weight=t) for t in tables), narrow


def embed_ngrams(
    recent: Sequence[Tensor], tables: nn.ModuleList, narrow: nn.Linear | None
) -> list[Tensor]:
    """Return what is added, (..., C) each, to embeddings of ids; ``recent`` is shifted_ids'."""
    n_rows = tables[0].num_embeddings if tables else 1
    found = [t(rows) for t, rows in zip(tables, ngram_rows(recent, n_rows), strict=True)]  # type: ignore[arg-type]
    return found if narrow is None else [narrow(torch.cat(found, dim=-1))]
