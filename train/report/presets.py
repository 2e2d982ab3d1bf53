"""What the presets mean on this machine: size, memory and time, estimated without any data.

A real run measures the network itself (setup/autotune.py) and knows better.
"""

import timeit
from collections.abc import Iterator
from dataclasses import asdict

import torch

from common.device import Device, set_matmul_precision
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig
from train.monitoring.metrics import duration, flops_per_token
from train.presets import PRESETS, Preset
from train.report.compare import table
from train.setup.memory import max_batch_size, training_bytes

# A network large enough to keep a machine busy, small enough for some passes in half a second.
N_PASSES = 6
TRIAL = ModelConfig(n_layer=2, n_head=4, n_embd=256, block_size=128, vocab_size=1_024)
TRIAL_ROWS = 8
HEADER = ["preset", "layers", "heads", "channels", "context", "parameters", "memory", "time here"]


def meta_model(preset: Preset) -> GPT:
    """Return the preset's network on PyTorch's meta device, which takes no memory."""
    with torch.device("meta"):
        return GPT(ModelConfig(**preset.model, vocab_size=preset.vocab_size))


def measure_flops(device: Device) -> float:
    """Return the operations a second that a small network's training reaches on the device."""
    set_matmul_precision(device.torch_device)
    model = GPT(TRIAL).to(device.torch_device)
    idx = torch.zeros(TRIAL_ROWS, TRIAL.block_size, dtype=torch.int64, device=device.torch_device)

    def train_once() -> None:
        with device.autocast():
            loss = model(idx, idx)
        loss.backward()
        loss.item()  # waits for the device

    # the fastest: the first warms up, and what else the machine does is not its speed
    seconds = min(timeit.repeat(train_once, number=1, repeat=N_PASSES))
    return idx.numel() * flops_per_token(model) / seconds


def expected_time(model: GPT, config: TrainConfig, flops: float) -> str:
    """Return how long a run takes at ``flops`` operations a second, where data do not decide it."""
    if config.minutes is not None:
        return duration(60 * config.minutes)
    token_s = flops_per_token(model) / flops
    if config.max_steps is None:
        return f"{config.epochs:g} epochs, {duration(token_s * 1e6)} a million"
    seconds = config.max_steps * config.tokens_per_step * token_s
    days = seconds / 86_400
    if days < 1:
        return duration(seconds)
    return f"{days:,.0f} days" if days < 365 else f"{days / 365:,.0f} years"


def presets_table(device: Device) -> str:
    """Return a row for each preset, what each is for, and how the estimates were made."""
    flops, rows = measure_flops(device), [HEADER]
    for name, preset in PRESETS.items():
        model, config = meta_model(preset), TrainConfig(**preset.train)
        c = model.config
        n_rows = min(max_batch_size(c, device), config.rows_per_step(c.block_size))
        n_bytes = training_bytes(model, n_rows, device.torch_device.type)
        shape = [name, *map(str, (c.n_layer, c.n_head, c.n_embd, c.block_size))]
        memory, run_time = f"{n_bytes / 1e9:.1f} GB", expected_time(model, config, flops)
        rows.append([*shape, f"{model.n_parameters:,}", memory, run_time])
    meanings = "\n".join(f"{name}: {preset.meaning}" for name, preset in PRESETS.items())
    return (
        f"{table(rows)}\n\n{meanings}\n\n"
        f"Memory and time are estimates, at {flops / 1e9:,.0f} GFLOP/s measured now on {device}.\n"
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
        mark = "*" if key in preset.model | preset.train else " "
        option = key.replace("_", "-")
        if isinstance(value, bool):
            yield f"{mark} --{'' if value else 'no-'}{option}"
        else:
            yield f"{mark} --{option} {value}"
    for key, value in preset.of_characters.items():
        yield f"* --{key.replace('_', '-')} {value} where the ids of the data are characters"
    yield "* set by the preset; all else is as declared."
