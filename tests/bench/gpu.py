"""On a GPU: GPT-2's network against transformers and the device's own limits, and Shakespeare.

Ours is trained by the trainer itself, a process of its own, on random ids: they take as long as
others. The limits are measured in the same run: a large matrix product, and a large copy. Not run
on a GPU yet, so that Shakespeare's settings are those of nanoGPT's with what helped on a CPU.

    python -m tests.bench gpu
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from common.dataset import SPLITS, Split
from common.device import Device, choose_device, set_matmul_precision
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import read_metrics
from tests.bench.programs import any_tokenizer
from tests.bench.sample import generation, their_generation
from tests.bench.table import compare
from tests.prepare.making import write_data
from train.monitoring.metrics import flops_per_token

REPOSITORY = Path(__file__).resolve().parents[2]
SHAKESPEARE = REPOSITORY.parent / "shared/data/tinyshakespeare.txt"
NANOGPT_LOSS = 1.4697  # nanoGPT's best on it, in three minutes of an A100; its README.md
SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, in full or small enough for a test."""

    shape: dict[str, Any]  # of the network, in GPT-2's architecture
    n_rows: int  # of a context each, in an update
    n_together: int  # of them, at a time
    n_steps: int
    side: int  # of the matrices in the largest product
    n_copied: int  # bytes
    repeats: int
    compile: bool
    recipe: tuple[str, ...]  # options for Shakespeare

    @property
    def config(self) -> ModelConfig:
        """The network as ours."""
        return ModelConfig(**ARCHITECTURES["gpt2"], **self.shape)

    @property
    def their_config(self) -> GPT2Config:
        """The same network as transformers'; dropout is 0 in ours."""
        shape = dict(self.shape)
        return GPT2Config(
            n_positions=shape.pop("block_size"), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            attn_implementation="sdpa", **shape,
        )  # fmt: skip


GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50_257}
FULL = Sizes(
    shape=GPT2,
    n_rows=64,
    n_together=16,
    n_steps=40,
    side=8192,
    n_copied=4 << 30,
    repeats=3,
    compile=True,
    recipe=(
        "--preset", "nanogpt-shakespeare", "--architecture", "modern", "--mlp", "relu2",
        "--zero-init", "--optimizer", "muon", "--learning-rate", "1e-2", "--matrix-lr", "6e-3",
        "--schedule", "linear", "--min-lr", "0", "--max-steps", "1200", "--eval-interval", "100",
    ),
)  # fmt: skip


def main(sizes: Sizes = FULL, name: str = "cuda", text: Path = SHAKESPEARE) -> None:
    """Print the tables; ``name`` is the device's."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("No GPU here: nothing is measured.\n")
        return
    logging.set_verbosity_error()
    device = choose_device(name)
    sys.stdout.write(f"{device}, PyTorch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        _training(Path(folder), sizes, device)
        _shakespeare(Path(folder), sizes, device, text)
    _generation(sizes, device)


def _training(folder: Path, sizes: Sizes, device: Device) -> None:
    data = _random_data(folder / "random", sizes)
    operations = flops_per_token(GPT(sizes.config))
    medians = compare(
        f"Training GPT-2's network, {sizes.n_rows} rows of {sizes.config.block_size}", "tokens/s",
        {
            "ours": partial(_ours, folder, data, sizes, device),
            "a large matrix product's operations": lambda: _product(sizes, device) / operations,
            "GPT2LMHeadModel, compiled, SDPA": partial(_theirs, sizes, device),
        },
        sizes.repeats,
    )  # fmt: skip
    ours, product, _ = medians.values()
    sys.stdout.write(f"Share of what the matrix product does (MFU): {ours / product:.2%}\n")


def _random_data(folder: Path, sizes: Sizes) -> Path:
    """Write a data set of random ids, enough for one epoch and an evaluation."""
    config, generator = sizes.config, np.random.default_rng(0)
    documents: dict[Split, list[Any]] = {}
    for split in SPLITS:
        n_rows = sizes.n_rows * (sizes.n_steps + 1) if split == "train" else 2
        shape = n_rows * config.block_size + 1
        documents[split] = [generator.integers(config.vocab_size - 5, size=shape)]
    return write_data(folder, documents, any_tokenizer(config.vocab_size)).path


def _run(command: list[str]) -> None:
    """Run it; what it says is shown where it fails."""
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")


def _train(folder: Path, data: Path, device: Device, *options: str) -> list[dict[str, Any]]:
    """Run ``train pretrain``; return the lines of its metrics.jsonl."""
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        command = [sys.executable, "-m", "train", "pretrain", "--data", str(data), "--run", "bench"]
        command += ["--runs-dir", runs, "--device", str(device.torch_device), "--log-interval", "1"]
        _run([*command, *options])
        return read_metrics(Path(runs) / "bench")


def _ours(folder: Path, data: Path, sizes: Sizes, device: Device) -> float:
    shape = [
        word
        for name in ("n_layer", "n_head", "n_embd", "block_size")
        for word in ("--" + name.replace("_", "-"), str(sizes.shape[name]))
    ]
    records = _train(
        folder, data, device, "--preset", "gpt2", "--optimizer", "adamw",
        *shape, "--pad-vocab", "64",
        "--tokens-per-step", str(sizes.n_rows * sizes.config.block_size),
        "--batch-size", str(sizes.n_together),
        "--max-steps", str(sizes.n_steps), "--eval-interval", str(sizes.n_steps),
        "--compile", "on" if sizes.compile else "off",
    )  # fmt: skip
    speeds = [float(record["tokens_per_second"]) for record in records]
    return median(speeds[len(speeds) // 2 :])  # the first ones compile


def _theirs(sizes: Sizes, device: Device) -> float:
    set_matmul_precision(device.torch_device)
    model = GPT2LMHeadModel(sizes.their_config).train().to(device.torch_device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
    forward: Callable[..., Any] = torch.compile(model) if sizes.compile else model
    size = (sizes.n_rows, sizes.config.block_size)
    idx = torch.randint(sizes.config.vocab_size, size, device=device.torch_device)

    def step() -> None:
        for rows in torch.split(idx, sizes.n_together):
            with device.autocast():
                loss: Tensor = forward(rows, labels=rows).loss * len(rows) / sizes.n_rows
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):  # compiles, and warms up
        step()
    seconds = _seconds(device, step, sizes.n_steps)
    model.cpu()
    torch.cuda.empty_cache()  # ours, another process, is to find as much memory each time
    return idx.numel() * sizes.n_steps / seconds


def _seconds(device: Device, act: Callable[[], object], n_times: int) -> float:
    """Return how long it takes to do something so often, to its end on the device."""

    def wait() -> None:
        if device.torch_device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    for _ in range(n_times):
        act()
    wait()
    return time.perf_counter() - start


def _product(sizes: Sizes, device: Device) -> float:
    """Return the operations a second of a large matrix product of random numbers."""
    shape = (sizes.side, sizes.side)
    a, b = (torch.randn(shape, device=device.torch_device, dtype=device.dtype) for _ in range(2))
    a @ b
    return 20 * 2 * sizes.side**3 / _seconds(device, lambda: a @ b, 20)


def _shakespeare(folder: Path, sizes: Sizes, device: Device, text: Path) -> None:
    if not text.exists():
        sys.stdout.write(f"\nNo {text}: Shakespeare is left out.\n")
        return
    data = folder / "shakespeare"
    prepare = [sys.executable, "-m", "prepare", "text", str(text), "--tokenizer", "char"]
    _run([*prepare, "--out", str(data)])
    out = [f"\nShakespeare's characters, to val {NANOGPT_LOSS}: {' '.join(sizes.recipe)}"]
    for seed in SEEDS[: sizes.repeats]:
        start = time.perf_counter()
        how = ["--compile", "on" if sizes.compile else "off", "--seed", str(seed)]
        records = _train(folder, data, device, *sizes.recipe, *how)
        whole_s = time.perf_counter() - start
        first_s = records[0]["seconds"]  # it takes the compiled code from PyTorch's cache
        found = [(r["val_loss"], r["seconds"] - first_s) for r in records if "val_loss" in r]
        until = next((f"{at:.1f} s" for loss, at in found if loss <= NANOGPT_LOSS), "not reached")
        best, best_s = min(found)
        else_s = whole_s - records[-1]["seconds"] + first_s
        out.append(
            f"seed {seed}: {until} after the first update; best val {best:.4f} after {best_s:.1f} "
            f"s; beginning, compiling and ending took {else_s:.1f} s besides"
        )
    sys.stdout.write("\n".join(out) + "\n")


def _generation(sizes: Sizes, device: Device) -> None:
    torch.manual_seed(0)
    model = GPT(sizes.config).to(device.torch_device, device.dtype).eval()
    n_bytes = (model.n_parameters - model.wpe.weight.numel()) * device.dtype.itemsize
    source = torch.randint(256, (sizes.n_copied,), dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)

    def readings() -> float:
        seconds = _seconds(device, lambda: target.copy_(source), 10)
        return 10 * 2 * sizes.n_copied / seconds / n_bytes  # read and written

    medians = compare(
        f"Generation, {n_bytes / 1e6:,.0f} MB of weights, one text greedily", "tokens/s",
        {
            "ours": generation(model, TorchBackend(model)),
            "memory: reading the weights": readings,
            "transformers generate": their_generation(sizes.their_config, device),
        },
        sizes.repeats,
    )  # fmt: skip
    ours, memory, _ = medians.values()
    sys.stdout.write(f"Share of memory's bandwidth: {ours / memory:.2%}\n")
