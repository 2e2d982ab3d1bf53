"""How many ids to learn: bits per byte at equal training time, by size of corpus and vocabulary.

    python -m tests.bench.vocabulary [SECONDS]

Each vocabulary trains the tiny preset for as many steps as fit into SECONDS at the speed measured
for it beforehand, so that the result does not depend on what else the machine does meanwhile. The
results it gave, and the rule read off them, are in VOCABULARY.md.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prepare.corpus import documentation

CORPUS_BYTES = (250_000, 1_000_000, 7_000_000)
VOCAB_SIZES = (512, 1024, 2048, 4096, 8192)
N_SPEEDS = 3


def run(*arguments: str, threads: int | None = None) -> str:
    """Run a command of a stage and return what it said on stderr."""
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return subprocess.run(
        [sys.executable, "-m", *arguments], check=True, capture_output=True, text=True,
        env=os.environ | limit,
    ).stderr  # fmt: skip


def step_seconds(data: Path, runs_dir: Path) -> float:
    """Return the time of an update, as the plan measures it."""
    said = run(
        "train", "pretrain", "--data", str(data), "--runs-dir", str(runs_dir), "--preset", "tiny",
        "--max-steps", "1", "--eval-tokens", "1000",
    )  # fmt: skip
    found = re.search(r"\(([\d,]+) ms a step", said)
    assert found, said
    return int(found[1].replace(",", "")) / 1000


def main(seconds: float) -> None:
    """Print a line a measurement: corpus, vocabulary, steps, bits per byte."""
    documents = [text for _, text in documentation()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [(n_bytes, size) for n_bytes in CORPUS_BYTES for size in VOCAB_SIZES]
        for n_bytes, size in cases:
            source = folder / f"{n_bytes}.jsonl"
            if not source.exists():
                share = n_bytes / sum(map(len, documents))
                kept = documents[:: max(1, round(1 / share))]
                source.write_text(
                    "".join(json.dumps({"text": text}) + "\n" for text in kept), encoding="utf-8"
                )
            run(
                "prepare", "text", str(source), "--vocab-size", str(size), "--split-rule", "hash",
                "--out", str(folder / f"{n_bytes}-{size}"),
            )  # fmt: skip
        # the speed does not depend on the corpus
        speeds: dict[int, list[float]] = {size: [] for size in VOCAB_SIZES}
        for _ in range(N_SPEEDS):
            for size in VOCAB_SIZES:
                data = folder / f"{CORPUS_BYTES[-1]}-{size}"
                speeds[size].append(step_seconds(data, folder / "speed"))

        def bits_per_byte(case: tuple[int, int]) -> str:
            n_bytes, size = case
            # the least of them: what else the machine does only adds
            steps = int(seconds / min(speeds[size]))
            run(
                "train", "pretrain", "--preset", "tiny", "--max-steps", str(steps),
                "--data", str(folder / f"{n_bytes}-{size}"), "--eval-tokens", "100000",
                "--runs-dir", str(folder), "--run", f"run-{n_bytes}-{size}",
                threads=1,
            )  # fmt: skip
            metrics = (folder / f"run-{n_bytes}-{size}" / "metrics.jsonl").read_text("utf-8")
            best = min(json.loads(line).get("val_bpb", 99.0) for line in metrics.splitlines())
            return f"{n_bytes:>10,} {size:>7,} {steps:>7,} steps {best:.4f} bits/byte\n"

        # one thread each: networks this small gain little from a second
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for line in pool.map(bits_per_byte, cases):
                sys.stdout.write(line)
                sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 150.0)
