"""Named settings: what a preset changes in ModelConfig and TrainConfig.

A setting given on the command line wins over the preset, the preset over the declared default.
"""

from dataclasses import dataclass
from typing import Any

from common.config import ARCHITECTURES


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset: for whom it is, and what it sets."""

    meaning: str
    model: dict[str, Any]
    train: dict[str, Any]


PRESETS = {
    "tiny": Preset(
        meaning="A CPU, some minutes.",
        model=ARCHITECTURES["modern"]
        | {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128},
        train={
            "minutes": 5.0,
            "tokens_per_step": 1_024,
            "learning_rate": 4e-3,
            "log_interval": 100,
        },
    ),
    "small": Preset(
        meaning="One GPU, half an hour.",
        model=ARCHITECTURES["modern"]
        | {"n_layer": 8, "n_head": 8, "n_embd": 512, "block_size": 512},
        train={"minutes": 30.0, "tokens_per_step": 65_536, "learning_rate": 1e-3},
    ),
}

# The settings that some preset decides.
DECIDED = {name for preset in PRESETS.values() for name in (*preset.model, *preset.train)}


def preset_for(device_type: str) -> str:
    """Return the preset that ``auto`` means on a device."""
    return "tiny" if device_type == "cpu" else "small"
