"""Measure contenders in turns and print them as ratios: machines are shared and noisy."""

import sys
from collections.abc import Callable
from statistics import median

REPEATS = 5


def compare(
    title: str, unit: str, contenders: dict[str, Callable[[], float]], repeats: int = REPEATS
) -> dict[str, float]:
    """Run each contender ``repeats`` times in turns; print medians, the ratio to the last one last.

    A contender returns its figure (more is better); the last is the peer. Returns the medians.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            figures[name].append(run())
    medians = {name: median(values) for name, values in figures.items()}
    peer = medians[list(contenders)[-1]]
    out = [f"\n{title}", f"{'':<44}{unit:>14}{'least..most':>22}{'ratio':>8}"]
    for name, values in figures.items():
        span = f"{min(values):,.1f}..{max(values):,.1f}"
        out.append(f"{name:<44}{medians[name]:>14,.1f}{span:>22}{medians[name] / peer:>8.2f}")
    sys.stdout.write("\n".join(out) + "\n")
    sys.stdout.flush()
    return medians
