"""What a Decoder asks of a network: a KV cache of several rows, prefill and decode.

Two backends: cpu/, compiled by Numba, and torch_backend.py, of PyTorch's operators, for GPUs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from common.models.config import ModelConfig

Floats = npt.NDArray[np.float32]
NextLogits = tuple[Floats, float]  # (V,) for one next token, and their logsumexp


class Position(NamedTuple):
    """Where a row's newest id goes in the cache, and that id with those before it, newest first."""

    row: int
    position: int
    recent: Sequence[int]  # as many as config.n_recent says, zeros before the first


class Logits(NamedTuple):
    """Logits (n, V) for the tokens after n tokens, and the logsumexp of each (n,).

    The latter is not finite where one of the logits is not.
    """

    logits: Floats
    logsumexp: Floats

    def each(self) -> Iterator[NextLogits]:
        """Yield those of one token after another."""
        return zip(self.logits, self.logsumexp.tolist(), strict=True)


class KVCache(Protocol):
    """Keys and values of several rows, each a text of its own, and what computes them."""

    # Tokens decoded together at most, of all rows: up to here a pass costs little more than for
    # one. 1 where drafts do not pay.
    max_batch_tokens: int

    def prefill(
        self, prompts: Sequence[tuple[int, Sequence[int]]], n_wanted: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Begin rows, each with its ids; yield rows and the logits after their last ``n_wanted``.

        Those of a row come in order, in as many parts as they are computed in.
        """
        ...

    def decode(self, positions: Sequence[Position]) -> Logits:
        """Put one more id at each of several positions; return the logits after each."""
        ...


class Backend(Protocol):
    """A network prepared for generation."""

    config: ModelConfig

    def make_cache(self, n_rows: int) -> KVCache:
        """Allocate a cache for ``n_rows`` texts."""
        ...
