"""SIGKILL at random moments of prepare, train, its resume and generate: they end as if unharmed."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.calls import Row
from tests.faults.commands import (
    GENERATE,
    kill_after,
    prepare_command,
    run,
    train_command,
    trained_bytes,
)
from tests.prepare.making import snapshot

Outcome = tuple[dict[str, bytes], tuple[bytes, ...], str]


def of_chain(place: Path, n_kills: int, seed: int = 0) -> Iterator[Row]:
    """Go through the chain again and again, killing each stage, until there were so many kills."""
    root = place / "chain"
    stages = [
        (prepare_command(place), 2),
        (train_command("data", max_steps=8, eval_interval=4), 3),
        (GENERATE, 1),
    ]
    seconds: list[float] = []

    def chain(drawn: random.Random | None) -> tuple[Outcome, int]:
        root.mkdir()
        n, written = 0, ""
        for number, (command, n_times) in enumerate(stages):
            if drawn is not None:
                for _ in range(n_times):
                    killed = kill_after(root, command, drawn.uniform(0, seconds[number]))
                    n += killed.code == -signal.SIGKILL
                    assert killed.code in (0, -signal.SIGKILL), killed.stderr
            start = time.monotonic()
            ended = run(root, command)
            assert ended.code == 0, ended.stderr
            seconds.append(time.monotonic() - start)
            written = ended.stdout
        found = snapshot(root / "data"), trained_bytes(root / "runs"), written
        shutil.rmtree(root)
        return found, n

    expected, _ = chain(None)
    drawn = random.Random(seed)
    n_done, n_chains, wrong = 0, 0, []
    while n_done < n_kills:
        try:
            found, n = chain(drawn)
            n_done += n
            if found != expected:
                wrong.append(f"chain {n_chains} of seed {seed} ends otherwise")
        except AssertionError as error:
            wrong.append(f"chain {n_chains} of seed {seed}: {error}")
            shutil.rmtree(root, ignore_errors=True)
            n_done += 1
        n_chains += 1
    yield Row("SIGKILL at a random moment", n_done, f"{n_chains:,} times the chain", wrong)
