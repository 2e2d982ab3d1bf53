"""What keeps a network from learning its text by heart, by how often it reads it.

A text read for the first time is not memorized yet, one read ten times is. Dropout of a network of
more layers and channels: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks
from overfitting". Weight decay that grows with the epochs: Kim et al. 2025 (arXiv:2509.14786).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from common.models.config import ModelConfig

# Settings at so many epochs, and between them in proportion: chosen from what was measured at 3 to
# 14, and looked at once at 30 (tests/bench/RECIPE.md).
EPOCHS = (0, 2, 4, 9, 12, 26)
Shares = Mapping[str, Sequence[float]]
BY_EPOCHS: Shares = {
    "ngram_dropout": (0.0, 0.25, 0.45, 0.5, 0.6, 0.75),
    "dropout": (0.0, 0.0, 0.0, 0.0, 0.12, 0.2),
    "weight_decay": (0.1, 0.1, 0.1, 0.1, 1.0, 1.0),
}
# A network of more channels learns by heart sooner, which decay prevents at no cost, and better
# than dropout does: measured at 4 and 8 epochs.
OF_LARGER: Shares = {
    "ngram_dropout": BY_EPOCHS["ngram_dropout"],
    "dropout": (0.0, 0.0, 0.0, 0.0, 0.0, 0.2),
    "weight_decay": (0.1, 0.1, 1.0, 1.0, 1.0, 1.0),
}
LARGER_CHANNELS = 256  # as what auto takes where it has time (auto.py)
# From so many on --preset auto has no tables: better for texts so long that prepare learns as many.
MANY_IDS = 8_000
# So does a small one without tables whose numbers are nearly all embeddings: at 4 and 10 epochs.
OF_MANY_IDS: Shares = {
    "ngram_dropout": BY_EPOCHS["ngram_dropout"],
    "dropout": (0.0, 0.0, 0.0, 0.1, 0.12, 0.2),
    "weight_decay": (0.1, 0.1, 1.0, 2.0, 2.0, 2.0),
}
# Where n-grams that are met once have rows too, as those of characters do, these are what is
# learned by heart, and the rest of the network is not. A larger one of such was measured once.
OF_ALL_NGRAMS: Shares = {
    "ngram_dropout": (0.0, 0.25, 0.4, 0.6, 0.65, 0.75),
    "dropout": (0.0, 0.0, 0.0, 0.0, 0.0, 0.2),
    "weight_decay": (0.1, 0.1, 0.1, 0.1, 0.1, 1.0),
}

# Weights are averages of what the last 1 / (rate * decay) steps made of them (Wang and Aitchison
# 2024, arXiv:2405.13698): of half an epoch at least, which are more steps of a longer text.
LEAST_EPOCHS = 0.5
LEAST_DECAY = 0.1


def most_decay(lr: float, epoch_steps: float) -> float:
    """Return the weight decay that still remembers LEAST_EPOCHS of so many steps."""
    return max(LEAST_DECAY, round(1 / max(lr * epoch_steps * LEAST_EPOCHS, 1e-9), 4))


def by_epochs_of(config: ModelConfig) -> Shares:
    """Return what suits such a network at the EPOCHS."""
    if config.ngrams > 1 and config.ngram_min_count < 2:
        return OF_ALL_NGRAMS
    if config.n_embd >= LARGER_CHANNELS:
        return OF_LARGER
    return OF_MANY_IDS if config.ngrams < 2 and config.vocab_size >= MANY_IDS else BY_EPOCHS


def regularization(
    names: Collection[str], n_epochs: float, shares: Shares = BY_EPOCHS
) -> dict[str, float]:
    """Return those settings for a run of that many epochs."""
    return {name: round(float(np.interp(n_epochs, EPOCHS, shares[name])), 4) for name in names}
