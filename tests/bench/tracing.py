"""What an index costs, and how fast an answer's spans and passages are found by it.

The text is that of the packages in .venv, 360 MB: nothing on a user's machine is as large and
repeats itself as little.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

import common
from common.dataset import DataFolder, open_data
from tests.bench.prepare import MB, Memory

SIZES = (1_000_000, 10_000_000, 100_000_000)  # tokens
BYTES_PER_TOKEN = 3.6  # of code, at most
N_ANSWERS, ANSWER_IDS = 200, 200

# Prints, in a process of its own, ms and MB: argv = data folder, a file of answers.
TRACE = """
import json, sys, time
from pathlib import Path
from common.dataset import open_data
from common.tracing import TracedData, Tracer

def peak_mb():
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000

answers = json.loads(Path(sys.argv[2]).read_text())
before = peak_mb()
tracer = Tracer([TracedData(open_data(Path(sys.argv[1])))])
times, n_spans = [], 0
for answer in answers:
    start = time.perf_counter()
    spans = tracer.trace(answer)
    times.append(1e3 * (time.perf_counter() - start))
    n_spans += len(spans)
print(json.dumps([times, n_spans, peak_mb() - before]))
"""


def main() -> None:
    """Print a line for each size."""
    sys.stdout.write(
        f"\nFinding answers of {ANSWER_IDS} tokens, half of them copied with every twentieth id "
        f"changed, half of held-out text\n{'tokens':>12}{'index s':>10}{'peak MB':>10}"
        f"{'bytes/token':>13}{'ms/answer':>11}{'slowest':>9}{'spans':>7}{'MB held':>9}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n_tokens in SIZES:
            measure(_prepared(folder, n_tokens), folder)


def measure(data: DataFolder, folder: Path) -> None:
    """Index a data folder, trace answers in it, and print what both took."""
    start = time.perf_counter()
    with Memory() as memory:
        subprocess.run(
            [sys.executable, "-m", "prepare", "index", str(data.path)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    n_seconds = time.perf_counter() - start
    (folder / "answers.json").write_text(json.dumps(list(_answers(data))))
    command = [sys.executable, "-c", TRACE, str(data.path), str(folder / "answers.json")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    times, n_spans, held_mb = json.loads(found)
    n_tokens = data.n_tokens("train")
    size = (data.path / "train.sa").stat().st_size / n_tokens
    sys.stdout.write(
        f"{n_tokens:>12,}{n_seconds:>10.1f}{memory.peak_bytes / MB:>10,.0f}{size:>13.1f}"
        f"{median(times):>11.1f}{max(times):>9.1f}{n_spans / len(times):>7.1f}{held_mb:>9.0f}\n"
    )
    sys.stdout.flush()


def _prepared(folder: Path, n_tokens: int) -> DataFolder:
    text = folder / f"{n_tokens}.jsonl"
    packages = Path(common.__path__[0]).parent / ".venv"
    with text.open("w", encoding="ascii") as file:
        n_left = n_tokens * BYTES_PER_TOKEN
        for path in sorted(packages.rglob("*.py")):
            content = path.read_text(encoding="utf-8", errors="replace")
            file.write(json.dumps({"text": content}) + "\n")
            n_left -= len(content)
            if n_left < 0:
                break
    subprocess.run(
        [sys.executable, "-m", "prepare", "text", str(text), "--out", str(folder / f"{n_tokens}"),
         "--vocab-size", "8192"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    text.unlink()
    return open_data(folder / f"{n_tokens}")


def _answers(data: DataFolder) -> Iterator[list[int]]:
    random = np.random.default_rng(1)
    train, val = data.tokens("train"), data.tokens("val")
    for number in range(N_ANSWERS):
        ids = val if number % 2 else train
        start = random.integers(len(ids) - ANSWER_IDS)
        answer = ids[start : start + ANSWER_IDS].tolist()
        if number % 2 == 0:
            answer[::20] = random.integers(8_000, size=len(answer[::20])).tolist()
        yield answer
