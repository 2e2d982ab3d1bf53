"""Sixteen clients that stream from ``sample serve`` against one; the server is its own process.

The network is the 124 M of gpt2's architecture with random weights: a step reads half a gigabyte of
them whoever asks, so that rows together cost little more than one. In networks that fit into the
caches there is less to share, and HTTP weighs more. Ids are drawn: greedily such a network repeats
itself, and what repeats is guessed, which speeds up one client more than many.
"""

import asyncio
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import torch

from common.checkpoint import save_checkpoint
from common.files import write_json
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from common.tokenizer import CharTokenizer
from tests.bench.table import compare
from tests.sample.serving import serving

V, N_NEW, N_CLIENTS = 50_257, 64, 16
FIRST_CHARACTER = 0x10000
SIZES: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_embd": 768}


def make_run(runs_dir: Path, sizes: dict[str, Any]) -> int:
    """Save a network with random weights as a run; return its parameters."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**ARCHITECTURES["gpt2"], **sizes, vocab_size=V, block_size=1024))
    # stands for any vocabulary of this size: five ids are special
    tokenizer = CharTokenizer(tuple(chr(FIRST_CHARACTER + i) for i in range(V - 5)))
    run = new_run(runs_dir, "bench")
    write_json(run / "config.json", {"format": 1})
    save_checkpoint(run, 1, model, {}, {"progress": {"n_tokens": 0}}, tokenizer)
    return model.n_parameters


async def stream(http: httpx2.AsyncClient, number: int) -> tuple[int, float]:
    """Stream one answer; return its tokens, and the seconds to the first of them."""
    body = {
        "prompt": "".join(chr(FIRST_CHARACTER + number + i) for i in range(8)),
        "max_tokens": N_NEW, "temperature": 1, "stream": True,
    }  # fmt: skip
    start, first_s, n_tokens = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/completions", json=body) as answered:
        async for line in answered.aiter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.perf_counter() - start
                n_tokens += 1  # each is a character of its own, so an event of its own
    return n_tokens, first_s


def speed(url: str, n_clients: int, first_s: list[float]) -> float:
    """Return the tokens a second that ``n_clients`` get together; note when each got its first."""

    async def all_clients() -> list[tuple[int, float]]:
        async with httpx2.AsyncClient(base_url=url, timeout=600) as http:
            return await asyncio.gather(*(stream(http, number) for number in range(n_clients)))

    start = time.perf_counter()
    heard = asyncio.run(all_clients())
    seconds = time.perf_counter() - start
    first_s += [first for _, first in heard]
    return sum(n_tokens for n_tokens, _ in heard) / seconds


def main(sizes: dict[str, Any] = SIZES) -> None:
    """Print the table, and the time to the first token."""
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = make_run(Path(folder) / "runs", sizes)
        with serving(Path(folder), "--rows", str(N_CLIENTS), one_thread=False) as server:
            speed(server.url, N_CLIENTS, [])  # warm up
            first_s: dict[int, list[float]] = {N_CLIENTS: [], 1: []}
            compare(
                f"Serving, gpt2 architecture, {n_parameters:,} parameters, float32, "
                f"{N_NEW} tokens each",
                "tokens/s",
                {f"{n} at once": partial(speed, server.url, n, first_s[n]) for n in (N_CLIENTS, 1)},
            )
    for n, seconds in first_s.items():
        p95 = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
        sys.stdout.write(f"time to the first token, {n} at once: p95 {1000 * p95:,.0f} ms\n")


if __name__ == "__main__":
    main()
