"""Generation against three other programs, and against what memory and arithmetic allow.

The floor of a large network: every weight is read once a token, so memory's bandwidth over the
weights' bytes. It is measured as the quickest of three ways to read a gigabyte, in the same run.

    python -m tests.bench sample
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.checkpoint import save_checkpoint
from common.device import Device
from common.files import write_json
from common.inference.backend import Backend
from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from tests.bench.programs import (
    GREEDY,
    N_NEW,
    PROMPT,
    any_tokenizer,
    export_all,
    side_by_side,
)
from tests.bench.table import compare
from train.presets import PRESETS

GPT2: dict[str, Any] = ARCHITECTURES["gpt2"] | {
    "n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257, "block_size": 1024,
}  # fmt: skip
TINY: dict[str, Any] = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 2053, "block_size": 256
}  # fmt: skip
READ_BYTES = 1 << 30  # far beyond any cache


def generation(
    model: GPT, network: Backend, n_rows: int = 1, *, guesses: bool = False
) -> Callable[[], float]:
    """Return what measures tokens a second, of all rows together, prompts included.

    Random weights write text that repeats itself: with guesses they say little of other text.
    """
    decoder = Decoder(network, any_tokenizer(model.config.vocab_size), n_rows)
    max_batch_tokens = decoder.cache.max_batch_tokens if guesses else 1

    def tokens_per_second() -> float:
        decoder.cache.max_batch_tokens = max_batch_tokens
        start = time.perf_counter()
        for row in range(n_rows):
            decoder.admit(row, [idx + row for idx in PROMPT], GREEDY)  # equal ones are read once
        for _ in range(N_NEW):
            decoder.step()
        seconds = time.perf_counter() - start
        for row in range(n_rows):
            decoder.release(row)
        return n_rows * N_NEW / seconds

    return tokens_per_second


def their_generation(config: GPT2Config, device: Device) -> Callable[[], float]:
    """Return the same of transformers' generate."""
    theirs = GPT2LMHeadModel(config).eval().to(device.torch_device, device.dtype)
    prompt = torch.tensor([PROMPT], device=device.torch_device)

    def tokens_per_second() -> float:
        start = time.perf_counter()
        out = theirs.generate(
            prompt, max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return float(out.shape[1] - len(PROMPT)) / (time.perf_counter() - start)

    return tokens_per_second


def reading(n_weights: int) -> Callable[[], float]:
    """Return what measures how often a second so many float32 weights can be read."""
    block = torch.ones(READ_BYTES // 4)
    matrix, vector = block.view(-1, 4096), torch.ones(4096)
    ways: list[Callable[[], object]] = [block.sum, block.max, lambda: torch.mv(matrix, vector)]

    def per_second() -> float:
        times = []
        for read in ways:
            start = time.perf_counter()
            read()
            times.append(time.perf_counter() - start)
        return READ_BYTES / min(times) / (4 * n_weights)

    return per_second


def large() -> None:
    """Print the tables of the 124 M network."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**GPT2)).eval()
    network = CpuBackend(model)
    ours = generation(model, network)
    n_weights = model.n_parameters - model.wpe.weight.numel()
    with tempfile.TemporaryDirectory() as folder:
        export_all(model, Path(folder))
        side_by_side("Generation, gpt2", model, Path(folder))
    compare("The same", "tokens/s", {
        "ours, float32, with guesses": generation(model, network, guesses=True),
        "ours, float32": ours,
    })  # fmt: skip
    compare("The same", "tokens/s", {
        "ours, float32": ours, "memory: reading the weights": reading(n_weights),
    })  # fmt: skip
    compare("The same, several texts", "tokens/s", {
        "ours, 16 texts together": generation(model, network, 16), "ours, one text": ours,
    })  # fmt: skip


def arithmetic(model: GPT) -> Callable[[], float]:
    """Return what measures tokens a second of the matrix products alone, one call each."""
    matrices = [p.detach().t().contiguous() for p in model.parameters() if p.dim() == 2]
    inputs = [torch.randn(1, len(matrix)) for matrix in matrices]
    pairs = list(zip(inputs, matrices, strict=True))

    @torch.inference_mode()
    def per_second() -> float:
        start = time.perf_counter()
        for _ in range(N_NEW):
            for x, matrix in pairs:
                torch.mm(x, matrix)
        return N_NEW / (time.perf_counter() - start)

    return per_second


def tiny() -> None:
    """Print the table of the tiny network, in microseconds a token: less is better."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**TINY)).eval()
    ours, products = generation(model, CpuBackend(model)), arithmetic(model)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as sample does for a network of this size
    compare(
        f"Generation, tiny, {model.n_parameters:,} parameters, one thread",
        "us/token",
        {"ours": lambda: 1e6 / ours(), "its matrix products alone": lambda: 1e6 / products()},
    )
    torch.set_num_threads(n_threads)


def presets() -> None:
    """Print the tables of the presets for CPUs, one thread as sample has for them."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("tiny", "tiny-portable"):
        torch.manual_seed(0)
        shape = {"vocab_size": PRESETS[name].vocab_size} | PRESETS[name].model
        model = GPT(ModelConfig(**shape | {"block_size": len(PROMPT) + N_NEW})).eval()
        with tempfile.TemporaryDirectory() as folder:
            export_all(model, Path(folder))
            side_by_side(f"Generation, {name}", model, Path(folder))
    torch.set_num_threads(n_threads)


def seconds_of(*arguments: str) -> Callable[[], float]:
    """Return what measures how long a Python process takes."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return time.perf_counter() - start

    return seconds


def whole_process() -> None:
    """Print how long one token of the tiny network takes, from nothing: less is better."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder), "tiny")
        write_json(run / "config.json", {"format": 1})
        model, progress = GPT(ModelConfig(**TINY)), {"step": 1, "n_tokens": 1}
        tokenizer = any_tokenizer(TINY["vocab_size"])
        save_checkpoint(run, 1, model, {}, {"progress": progress}, tokenizer)
        generate = ["-m", "sample", "generate", "--runs-dir", folder, "--max-new-tokens", "1"]
        compare("One token of the tiny network, whole process", "seconds", {
            "sample generate": seconds_of(*generate),
            "import torch": seconds_of("-c", "import torch"),
        })  # fmt: skip


def main() -> None:
    """Print the tables."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as sample does; for the peers as well
    large()
    presets()
    tiny()
    whole_process()
