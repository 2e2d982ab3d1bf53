"""What a Decoder asks of a network: to hold several texts and to score what comes next in each.

Two networks do so: cpu/'s on CPUs, and torch_backend.py's, of PyTorch's operators, on GPUs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from common.models.config import ModelConfig

Floats = npt.NDArray[np.float32]


class Place(NamedTuple):
    """Where the newest id of a text goes, and that id with those before it, the last first."""

    row: int
    position: int
    recent: Sequence[int]  # as many as config.n_recent says


class Scored(NamedTuple):
    """Scores (n, V) for what follows n tokens, and of each the logarithm of the sum of exp (n,).

    The latter is no finite number where one of the scores is none.
    """

    scores: Floats
    totals: Floats


class Contexts(Protocol):
    """The texts so far of several rows."""

    # Tokens scored together at most, of all texts: up to here a pass costs little more than for
    # one. 1 where guesses do not pay.
    most_places: int

    def read(self, row: int, ids: Sequence[int], n_wanted: int = 1) -> Iterator[Scored]:
        """Put ``ids`` into a row; yield scores of what follows each of the last ``n_wanted``."""
        ...

    def read_all(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[Scored]:
        """Put ids into several rows; return what follows each text."""
        ...

    def score(self, places: Sequence[Place]) -> Scored:
        """Put one more id into each of several places; return what follows each of them."""
        ...


class ScoringNetwork(Protocol):
    """A network laid out for generation."""

    config: ModelConfig

    def contexts(self, n_rows: int) -> Contexts:
        """Return room for ``n_rows`` texts."""
        ...
