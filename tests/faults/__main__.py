"""Do what may go wrong, count it, and print a table: python -m tests.faults [--few] [CHECK]...

Exit code 1, and a sentence each, where something went wrong.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tests.faults import bits, full_disk, jobs, killed, lost_power, stopped
from tests.faults.calls import Row

# name -> the check, and how much of it is done: all, in the slow tests, in the default ones
CHECKS: dict[str, tuple[Callable[[Path, int], Iterator[Row]], tuple[int, int, int]]] = {
    "power-prepare": (lost_power.of_prepare, (6_000, 6_000, 100)),
    "power-train": (lost_power.of_train, (12_000, 3_000, 100)),
    "power-chat": (lost_power.of_chat, (1_000, 1_000, 100)),
    "disk-prepare": (full_disk.of_prepare, (1, 3, 29)),  # every so many calls
    "disk-train": (full_disk.of_train, (1, 3, 41)),
    "disk-chat": (full_disk.of_chat, (1, 1, 1)),
    "signals": (stopped.in_phases, (1_000, 50, 8)),
    "signals-import": (stopped.while_importing, (30, 12, 0)),
    "kills": (killed.of_chain, (1_000, 50, 0)),
    "bits-checkpoint": (bits.of_checkpoint, (1, 1, 53)),  # every so many bits
    "bits-data": (bits.of_data, (1, 1, 53)),
}
WIDTH = 42
AMOUNTS = {"--all": 0, "--slow": 1, "--few": 2}


def rows(name: str, amount: int) -> bool:
    """Write a check's rows as they are done; tell whether all went well."""
    check, amounts = CHECKS[name]
    n_wrong = 0
    shm = Path("/dev/shm")  # quick to flush
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as place:
        start = time.monotonic()
        for row in check(Path(place).resolve(), amounts[amount]):
            seconds, start = time.monotonic() - start, time.monotonic()
            counts = f"{row.n_cases:>7,} {len(row.wrong):>6} {seconds:>8.1f}"
            click.echo(f"{row.what:<{WIDTH}} {counts}  {row.detail}")
            for sentence in row.wrong[:20]:
                click.echo(f"{name}: {sentence}", err=True)
            n_wrong += len(row.wrong)
    return n_wrong == 0


def main(names: list[str], amount: int) -> int:
    """Make the checks; return 0 where nothing went wrong."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    jobs.quiet()
    click.echo(f"{'what':<{WIDTH}} {'cases':>7} {'wrong':>6} {'seconds':>8}  of which")
    codes = []
    for name in [name for name in names if CHECKS[name][1][amount]]:
        # each in a child: one that has trained cannot fork any that does
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = int(not rows(name, amount))
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        codes.append(os.waitpid(child, 0)[1])
    return int(any(codes))


if __name__ == "__main__":
    given = sys.argv[1:]
    flags = [AMOUNTS[each] for each in given if each in AMOUNTS]
    chosen = [each for each in given if each not in AMOUNTS]
    if unknown := set(chosen) - CHECKS.keys():
        sys.exit(f"faults: no {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}.")
    sys.exit(main(chosen or list(CHECKS), flags[0] if flags else 0))
