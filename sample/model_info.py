"""What the page says of the model: its shape, what it read, how well it did, and its defaults."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.metrics import read_metrics
from sample.chat.banner import read_facts, warning
from sample.server.requests import ServedModel

Json = dict[str, Any]
MAX_POINTS = 500  # of each line of the curve: a screen shows no more


def make_card(folder: Path, loaded: Checkpoint, model: ServedModel) -> Json:
    """Return the card of the checkpoint in ``folder`` as JSON."""
    facts = read_facts(folder, loaded)
    lines = read_metrics(folder.parent)
    config = loaded.model.config
    defaults = model.defaults
    return {
        "name": model.name,
        "step": facts.step,
        "parameters": facts.n_parameters,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "vocab_size": config.vocab_size,
        "tokens_read": facts.n_tokens,
        "val_loss": finite(facts.val_loss),
        "val_bpb": finite(facts.val_bpb),
        "warning": warning(facts),
        "curve": {
            "train": thinned(points(lines, "loss")),
            "val": thinned(points(lines, "val_loss")),
        },
        "defaults": {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "max_tokens": defaults.max_new_tokens,
        },
        "template": model.template.name,
    }


def points(lines: Sequence[Json], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the lines of metrics.jsonl where ``key`` is a finite number."""
    return [(line["step"], line[key]) for line in lines if finite(line.get(key)) is not None]


def finite(value: float | None) -> float | None:
    """Return a number, or None where it is none: JSON has no word for a diverged loss."""
    return value if value is not None and math.isfinite(value) else None


def thinned(line: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS of the points, evenly, the last one among them."""
    stride = -(-len(line) // MAX_POINTS)
    return list(line[::-1][:: max(1, stride)][::-1])
