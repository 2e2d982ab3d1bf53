"""Time to a loss, and loss after a time: `tiny` against nanoGPT's recipe for a CPU.

Whole processes, from the start of Python on. The peer's own time is the measure: `tiny` makes as
many steps as it needs to reach a loss, and then as many as end within all of that time. The peer
runs in the same trainer (preset nanogpt-shakespeare-cpu), so what makes every network faster here
makes it faster too; but in float32, as nanoGPT itself does on a CPU (its train.py casts on GPUs
only).
"""

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
SEEDS = (1, 2, 3)
NANOGPT_LOSS = 1.886  # nanoGPT itself on tinyshakespeare, over all of val, in nats a character
START_S = 3.0  # of each process goes by before its first step and after its last, about
N_TRIES = 4  # to end within the peer's time, and not long before
LEAST_SHARE = 0.96  # of that time
EVALUATION = re.compile(r"eval .*val loss ([\d.]+) \(([\d.]+) bits/byte\)")


@dataclass(frozen=True)
class Result:
    """What a run said at each evaluation, with the seconds since its process began."""

    evaluations: list[tuple[float, float, float]]  # seconds, val loss, bits a byte
    seconds: float  # until the process ended

    def first(self, loss: float) -> float | None:
        """Return the seconds until the val loss was at most ``loss``, or None."""
        return next((at for at, val, _ in self.evaluations if val <= loss), None)


def train(folder: Path, seed: int, *options: str) -> Result:
    """Run ``train pretrain`` on the data in ``folder``."""
    command = [sys.executable, "-m", "train", "pretrain", "--data", str(folder / "data")]
    command += ["--runs-dir", str(folder / "runs"), "--seed", str(seed), *options]
    start, evaluations = time.perf_counter(), []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := EVALUATION.match(line):
                seconds = time.perf_counter() - start
                evaluations.append((seconds, float(found[1]), float(found[2])))
    assert process.returncode == 0, command
    return Result(evaluations, time.perf_counter() - start)


def tiny(folder: Path, seed: int, n_steps: int) -> Result:
    """Run the preset ``tiny`` for ``n_steps``, evaluated at their end only."""
    steps = ["--max-steps", str(n_steps), "--eval-interval", str(n_steps)]
    return train(folder, seed, "--preset", "tiny", *steps)


def tiny_within(folder: Path, seed: int, seconds: float, step_s: float) -> Result:
    """Run ``tiny`` for as many steps as end within ``seconds``, at about ``step_s`` each.

    The machine's speed changes: where a run took longer, or ended long before, another with fewer
    or more steps takes its place.
    """
    within = None
    for _ in range(N_TRIES):
        result = tiny(folder, seed, n_steps := int((seconds - START_S) / step_s))
        if result.seconds <= seconds:
            within = result
            if result.seconds >= LEAST_SHARE * seconds:
                break
        step_s = 1.03 * (result.seconds - START_S) / n_steps
    assert within, f"no run of {N_TRIES} ended within {seconds:.0f} s"
    return within


def measure(name: str, source: Path, tokenizer: str, target: float | None, n_steps: int) -> None:
    """Print the table of one corpus; the target is the peer's own last loss where None.

    The short runs of `tiny` make ``n_steps``: about as many as the target takes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare = [sys.executable, "-m", "prepare", "text", str(source), "--tokenizer", tokenizer]
        subprocess.run(
            [*prepare, "--out", str(folder / "data")], check=True, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        rows = []
        for seed in SEEDS:
            peer = train(folder, seed, "--preset", "nanogpt-shakespeare-cpu", "--dtype", "float32")
            wanted = peer.evaluations[-1][1] if target is None else target
            until = peer.first(wanted) or peer.seconds
            short = tiny(folder, seed, n_steps)
            reached = short.first(wanted)
            step_s = (short.seconds - START_S) / n_steps
            long = tiny_within(folder, seed, peer.seconds, step_s)
            rows.append((seed, peer, wanted, until, short, reached, long))
    out = [
        f"\n{name}: tiny against nanogpt-shakespeare-cpu, whole processes",
        f"{'seed':<6}{'peer: val, in s':>20}{'to reach':>10}{'after s':>9}"
        f"{'tiny: val, in s':>20}{'share':>8}{'val after the whole':>22}{'bits/byte less':>16}",
    ]
    shares, losses, less = [], [], []
    for seed, peer, wanted, until, short, reached, long in rows:
        taken = None if reached is None else reached / until
        saved = 1 - long.evaluations[-1][2] / peer.evaluations[-1][2]
        shares.append(taken if taken is not None else float("inf"))
        losses.append(long.evaluations[-1][1])
        less.append(saved)
        said = "not yet" if taken is None else f"1/{1 / taken:.1f}"
        out.append(
            f"{seed:<6}{peer.evaluations[-1][1]:>12.4f},{peer.seconds:>6.1f}s{wanted:>10.4f}"
            f"{until:>8.1f}s{short.evaluations[-1][1]:>12.4f},{short.seconds:>6.1f}s{said:>8}"
            f"{long.evaluations[-1][1]:>13.4f},{long.seconds:>6.1f}s{saved:>16.1%}"
        )
    middle = median(shares)  # infinite where most did not reach it in the time they had
    time_said = "not reached in" if middle == float("inf") else f"1/{1 / middle:.1f}"
    out.append(
        f"median: {time_said} of the time; val {median(losses):.4f} and "
        f"{median(less):.1%} fewer bits a byte after the peer's whole time"
    )
    sys.stdout.write("\n".join(out) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print both tables."""
    measure("tinyshakespeare", SHARED / "tinyshakespeare.txt", "char", NANOGPT_LOSS, 40)
    measure("wikitext-2", SHARED / "wikitext-2", "bpe", None, 108)
