"""What a person should know of a model before talking to it, in words that do not flatter it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.dataset import open_data
from common.errors import UserError
from common.metrics import read_metrics
from common.run_dir import CONFIG_NAME, read_json

# Tokens read per parameter where more of either no longer pays more than of the other.
# Source: Hoffmann et al. 2022, section 3, table 3 (arXiv:2203.15556): 1.5 T for 67 B parameters.
TOKENS_PER_PARAMETER = 20
# Share of ln V, the loss of blind guessing, that remains where one knows each token's frequency:
# measured on English documentation, 0.72 for characters and 0.84 for 2,053 byte pairs.
FREQUENCIES_ALONE = 0.8


@dataclass(frozen=True)
class Facts:
    """What is known of a checkpoint."""

    folder: Path
    step: int
    n_tokens: int  # read in training
    n_parameters: int
    vocab_size: int
    epochs: float | None = None  # None where the data are gone
    val_loss: float | None = None  # nats a token; None where it was not measured
    val_bpb: float | None = None


def read_facts(folder: Path, loaded: Checkpoint) -> Facts:
    """Return what is known of the checkpoint in ``folder``."""
    step, n_tokens = loaded.state["step"], loaded.state["progress"]["n_tokens"]
    lines = read_metrics(folder.parent)
    evaluated = next((line for line in lines if line["step"] == step and "val_loss" in line), {})
    n_data = _tokens_of_data(folder.parent)
    return Facts(
        folder=folder,
        step=step,
        n_tokens=n_tokens,
        n_parameters=loaded.model.n_parameters,
        vocab_size=loaded.tokenizer.vocab_size,
        epochs=n_tokens / n_data if n_data else None,
        val_loss=evaluated.get("val_loss"),
        val_bpb=evaluated.get("val_bpb"),
    )


def _tokens_of_data(run: Path) -> int | None:
    """Return how many tokens the run's training data hold, if these are still where they were."""
    try:
        described: dict[str, Any] = read_json(run / CONFIG_NAME)["data"]
        data = open_data(Path(described["path"]))
        return data.n_tokens("train") if data.sha256 == described["sha256"] else None
    # a run without them can be talked to all the same
    except (UserError, KeyError, TypeError, OSError):
        return None


def loss_words(val_loss: float | None, val_bpb: float | None = None) -> str:
    """Return the validation loss of a checkpoint in words."""
    if val_loss is None:
        return "val loss not measured"
    return f"val loss {val_loss:.4f}" + (f" ({val_bpb:.3f} bits/byte)" if val_bpb else "")


def warning(facts: Facts) -> str | None:
    """Return a sentence on a model that was trained too little to be judged, or None."""
    blind = math.log(facts.vocab_size)
    if facts.val_loss is not None and facts.val_loss > FREQUENCIES_ALONE * blind:
        return (
            f"It has hardly begun to learn: guessing blindly among {facts.vocab_size:,} tokens has "
            f"a loss of {blind:.2f}, and knowing no more than how frequent each is about "
            f"{FREQUENCIES_ALONE * blind:.1f}. Expect gibberish."
        )
    ratio = facts.n_tokens / facts.n_parameters
    if ratio < TOKENS_PER_PARAMETER:
        return (
            f"It is undertrained: it read {ratio:.1f} tokens for each of its "
            f"{facts.n_parameters:,} parameters, where {TOKENS_PER_PARAMETER} are usual. Expect "
            "the sound of its text more than its sense."
        )
    return None


def banner(facts: Facts) -> str:
    """Return the lines that open a chat."""
    epochs = "" if facts.epochs is None else f" ({facts.epochs:.2f} epochs)"
    lines = [
        f"{facts.folder}: step {facts.step:,}, {facts.n_tokens:,} tokens read{epochs}, "
        f"{loss_words(facts.val_loss, facts.val_bpb)}.",
        "This is a base model: it does not answer, it continues the text that you begin.",
        warning(facts),
        "/help lists the commands, Ctrl-D leaves.",
    ]
    return "\n".join(line for line in lines if line is not None)
