"""What the presets mean on this machine: size, memory and length.

How long a step takes, a run measures itself (setup/autotune.py).
"""

from collections.abc import Iterator
from dataclasses import asdict

import torch

from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig
from train.monitoring.metrics import duration
from train.presets import PRESETS, Preset
from train.report.compare import table
from train.setup.memory import max_batch_size, training_bytes

HEADER = ["preset", "layers", "heads", "channels", "context", "parameters", "memory", "length"]


def meta_model(preset: Preset) -> GPT:
    """Return the preset's network on PyTorch's meta device, which takes no memory."""
    with torch.device("meta"):
        return GPT(ModelConfig(**preset.model, vocab_size=preset.vocab_size))


def length_of(config: TrainConfig) -> str:
    """Return how long a run is, in the one way that the preset sets."""
    if config.minutes is not None:
        return duration(60 * config.minutes)
    if config.max_steps is not None:
        return f"{config.max_steps:,} steps"
    return f"{config.epochs:g} epochs"


def presets_table(device: Device) -> str:
    """Return a row for each preset, what each is for, and how the estimates were made."""
    rows = [HEADER]
    for name, preset in PRESETS.items():
        model, config = meta_model(preset), TrainConfig(**preset.train)
        c = model.config
        n_rows = min(max_batch_size(c, device), config.rows_per_step(c.block_size))
        n_bytes = training_bytes(model, n_rows, device.torch_device.type)
        shape = [name, *map(str, (c.n_layer, c.n_head, c.n_embd, c.block_size))]
        memory = f"{n_bytes / 1e9:.1f} GB"
        rows.append([*shape, f"{model.n_parameters:,}", memory, length_of(config)])
    meanings = "\n".join(f"{name}: {preset.meaning}" for name, preset in PRESETS.items())
    return (
        f"{table(rows)}\n\n{meanings}\n\n"
        f"Memory is an estimate, for training on {device}.\n"
        "All that one sets, and how to prepare data for it: python -m train presets NAME"
    )


def preset_lines(name: str) -> Iterator[str]:
    """Yield what a preset is for, data that fit it, and each setting a run would have."""
    preset = PRESETS[name]
    model = meta_model(preset)
    yield f"{name}: {preset.meaning}"
    yield f"{model.n_parameters:,} parameters with a vocabulary of {preset.vocab_size:,} ids."
    yield f"Data that fit: python -m prepare text SRC --out data {preset.prepare}"
    for key, value in (asdict(model.config) | asdict(TrainConfig(**preset.train))).items():
        if key == "vocab_size" or value is None:
            continue
        mark = "*" if key in preset.model | preset.train or key in preset.by_epochs else " "
        value = "(by the number of epochs)" if key in preset.by_epochs else value
        option = key.replace("_", "-")
        if isinstance(value, bool):
            yield f"{mark} --{'' if value else 'no-'}{option}"
        else:
            yield f"{mark} --{option} {value}"
    for key, value in preset.of_characters.items():
        yield f"* --{key.replace('_', '-')} {value} where the ids of the data are characters"
    if "ngram_rows" in preset.model:
        yield "* fewer --ngram-rows where the data have less than four times as many tokens"
    yield "* set by the preset; all else is as declared."
