"""Each stage alone, beside one busy process, and beside two: a browser on a laptop of two cores.

A process that computes all the time takes a core, or a share of one. With two cores, beside one of
them a fair scheduler leaves 1 1/3 cores to two threads and a whole one to one; beside two, one.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig, ModelConfig
from common.models.gpt import GPT
from prepare.corpus import documentation
from tests.bench.prepare import ENVIRONMENT
from tests.bench.programs import any_tokenizer
from tests.bench.sample import GPT2
from tests.bench.serve import SIZES as GPT2_SIZES
from tests.bench.serve import make_run, speed
from tests.bench.table import compare
from tests.sample.serving import serving
from train.presets import PRESETS

BUSY = "while True: pass"
TRAIN_S = 15.0
SAMPLED = GenerateConfig(max_new_tokens=100, temperature=1.0, top_k=0)
TWO_LAYERS = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "32"]


@contextmanager
def beside(n_busy: int) -> Iterator[None]:
    """Keep ``n_busy`` processes computing."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n_busy)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def table(title: str, unit: str, run: Callable[[], float], repeats: int = 5) -> None:
    """Print the medians of ``run`` beside two, beside one, and alone, measured in turns."""

    def measured(n_busy: int) -> float:
        with beside(n_busy):
            return run()

    contenders: dict[str, Callable[[], float]] = {
        "beside two busy processes": partial(measured, 2),
        "beside one": partial(measured, 1),
        "alone": partial(measured, 0),
    }
    compare(f"{title}, alone and beside busy processes", unit, contenders, repeats)


def command(folder: Path, *arguments: str) -> None:
    """Run a stage as its users do; raise where it fails."""
    subprocess.run(
        [sys.executable, "-m", *arguments], cwd=Path(__file__).parents[2], env=ENVIRONMENT,
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def prepared_mb_per_second(folder: Path, source: Path) -> float:
    """Prepare a file anew; return its megabytes a second, the process's start included."""
    start = time.perf_counter()
    command(folder, "prepare", "text", str(source), "--tokenizer", "bpe", "--out",
            str(folder / f"data-{time.monotonic_ns()}"))  # fmt: skip
    return source.stat().st_size / 1e6 / (time.perf_counter() - start)


def trained_tokens_per_second(folder: Path, data: Path, *options: str) -> float:
    """Train for TRAIN_S; return the median of the tokens a second that were logged."""
    runs = folder / f"runs-{time.monotonic_ns()}"
    command(folder, "train", "pretrain", "--data", str(data), "--runs-dir", str(runs),
            "--minutes", str(TRAIN_S / 60), "--log-interval", "10", "--eval-tokens", "2000",
            "--device", "cpu", *options)  # fmt: skip
    (log,) = runs.glob("*/metrics.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()
    return float(median(json.loads(line)["tokens_per_second"] for line in lines))


def generated_tokens_per_second(settings: dict[str, Any]) -> Callable[[], float]:
    """Return what measures the tokens a second of one text."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**settings)).eval()
    decoder = Decoder(make_backend(model), any_tokenizer(settings["vocab_size"]))

    def run() -> float:
        n_tokens, start = 0, time.perf_counter()
        while n_tokens == 0 or time.perf_counter() - start < 3.0:
            decoder.admit(0, [1, 2, 3], SAMPLED)
            for _ in range(SAMPLED.max_new_tokens):
                decoder.step()
            decoder.release(0)
            n_tokens += SAMPLED.max_new_tokens
        return n_tokens / (time.perf_counter() - start)

    return run


def main() -> None:
    """Print a table for each stage."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        text = "\n".join(text for _, text in documentation())
        (folder / "text.jsonl").write_text(
            "".join(
                json.dumps({"text": text[i : i + 5_000]}) + "\n" for i in range(0, len(text), 5_000)
            )
            * 8,
            encoding="utf-8",
        )
        (folder / "text.txt").write_text(text[:2_000_000], encoding="utf-8")
        table("Preparing 60 MB of JSON lines", "MB/s",
              partial(prepared_mb_per_second, folder, folder / "text.jsonl"))  # fmt: skip
        for tokenizer in ("bpe", "char"):
            command(folder, "prepare", "text", str(folder / "text.txt"), "--tokenizer", tokenizer,
                    "--out", str(folder / tokenizer))  # fmt: skip
        table("Training tiny", "tokens/s",
              partial(trained_tokens_per_second, folder, folder / "bpe"))  # fmt: skip
        table("Training 2 layers of 32 channels on characters", "tokens/s",
              partial(trained_tokens_per_second, folder, folder / "char", *TWO_LAYERS))  # fmt: skip
        tiny = PRESETS["tiny"].model | {"vocab_size": PRESETS["tiny"].vocab_size}
        table("Generating, tiny", "tokens/s", generated_tokens_per_second(tiny))
        table("Generating, gpt2's 124 M", "tokens/s", generated_tokens_per_second(GPT2))
        make_run(folder / "runs", GPT2_SIZES)
        with serving(folder, "--rows", "16", one_thread=False) as server:
            speed(server.url, 16, [])  # warm up
            table("Serving gpt2's 124 M to 16 clients", "tokens/s",
                  partial(speed, server.url, 16, []), repeats=3)  # fmt: skip


if __name__ == "__main__":
    main()
