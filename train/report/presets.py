"""What the presets mean on this machine: size, memory and time, estimated without any data.

    parameters   counted, on PyTorch's meta device, which takes no memory
    memory       of a micro-batch: weights, gradients, optimizer, activations
    time         operations of the whole run over a rate that half a second measures here

A real run measures the network itself (setup/autotune.py) and knows better.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict

import torch

from common.device import Device, set_matmul_precision
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.config import TrainConfig
from train.monitoring.metrics import duration, flops_per_token
from train.presets import PRESETS, Preset
from train.setup.memory import max_batch_size, training_bytes

MEASURE_S = 0.5
# A network large enough to keep a machine busy, small enough for some passes in half a second.
TRIAL = ModelConfig(n_layer=2, n_head=4, n_embd=256, block_size=128, vocab_size=1_024)
TRIAL_ROWS = 8
HEADER = ("preset", "layers", "heads", "channels", "context", "parameters", "memory", "time here")
LINE = "{:<24}{:>6}{:>6}{:>9}{:>8}{:>14}{:>9}{:>30}"


def meta_model(preset: Preset) -> GPT:
    """Return the preset's network without memory for its weights."""
    with torch.device("meta"):
        return GPT(ModelConfig(**preset.model, vocab_size=preset.vocab_size))


def measure_flops(device: Device) -> float:
    """Return the operations a second that a small network's training reaches on the device."""
    set_matmul_precision(device.torch_device)
    model = GPT(TRIAL).to(device.torch_device)
    idx = torch.zeros(TRIAL_ROWS, TRIAL.block_size, dtype=torch.int64, device=device.torch_device)

    def pass_s() -> float:
        start = time.perf_counter()
        with device.autocast():
            loss = model(idx, idx)
        loss.backward()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    pass_s()  # warms up
    times = [pass_s()]
    while sum(times) < MEASURE_S:
        times.append(pass_s())
    # the fastest: what else the machine does is not its speed
    return idx.numel() * flops_per_token(model) / min(times)


def expected_time(model: GPT, config: TrainConfig, flops: float) -> str:
    """Return how long a run takes at ``flops`` operations a second, where data do not decide it."""
    if config.minutes is not None:
        return duration(60 * config.minutes)
    token_s = flops_per_token(model) / flops
    if config.epochs is not None:
        return f"{config.epochs:g} epochs, {duration(token_s * 1e6)} a million"
    if config.max_steps is None:
        return "as long as is asked for"
    seconds = config.max_steps * config.tokens_per_step * token_s
    days = seconds / 86_400
    if days < 1:
        return duration(seconds)
    return f"{days:,.0f} days" if days < 365 else f"{days / 365:,.0f} years"


def table_lines(device: Device) -> Iterator[str]:
    """Yield a line for each preset, and how the estimates were made."""
    flops = measure_flops(device)
    yield LINE.format(*HEADER)
    for name, preset in PRESETS.items():
        model, config = meta_model(preset), TrainConfig(**preset.train)
        c = model.config
        n_rows = min(
            config.batch_size or max_batch_size(c, device),
            config.rows_per_step(c.block_size),
        )
        n_bytes = training_bytes(model, n_rows, device.torch_device.type)
        memory, run_time = f"{n_bytes / 1e9:.1f} GB", expected_time(model, config, flops)
        shape = (c.n_layer, c.n_head, c.n_embd, c.block_size, f"{model.n_parameters:,}")
        yield LINE.format(name, *shape, memory, run_time)
    yield ""
    for name, preset in PRESETS.items():
        yield f"{name}: {preset.meaning}"
    yield ""
    yield f"Memory and time are estimates, at {flops / 1e9:,.0f} GFLOP/s measured now on {device}."
    yield "All that one sets, and how to prepare data for it: python -m train presets NAME"


def preset_lines(name: str) -> Iterator[str]:
    """Yield what a preset is for, data that fit it, and each setting a run would have."""
    preset = PRESETS[name]
    model = meta_model(preset)
    yield f"{name}: {preset.meaning}"
    yield f"{model.n_parameters:,} parameters with a vocabulary of {preset.vocab_size:,} ids."
    yield f"Data that fit: python -m prepare text SRC --out data {preset.prepare}"
    settings = asdict(model.config) | asdict(TrainConfig(**preset.train))
    for key, value in settings.items():
        if key != "vocab_size" and value is not None:
            mark = "*" if key in preset.model | preset.train else " "
            option = key.replace("_", "-")
            if isinstance(value, bool):
                yield f"{mark} --{'' if value else 'no-'}{option}"
            else:
                yield f"{mark} --{option} {value}"
    for key, value in preset.of_characters.items():
        yield f"* --{key.replace('_', '-')} {value} where the ids of the data are characters"
    yield "* set by the preset; all else is as declared."
