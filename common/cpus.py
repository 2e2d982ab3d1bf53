"""How many processors this process may use: those it may run on, as far as its cgroup lets it.

A container may be held to one processor's time on a machine of 64: 64 threads would each be given
a 64th of it, and wait for each other. Source: Linux, Documentation/admin-guide/cgroup-v2.rst
(cpu.max), and scheduler/sched-bwc.rst for version 1 (cpu.cfs_quota_us).
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")


def available_cpus(root: Path = ROOT) -> int:
    """Return the number, at least 1; ``root`` is where proc and sys are found."""
    # macOS does not say which processors a process may use
    may_run = hasattr(os, "sched_getaffinity")
    n = len(os.sched_getaffinity(0)) if may_run else os.cpu_count() or 1
    return max(1, min([n, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the processors that each cgroup above this process grants it."""
    groups: list[str] = []
    with suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = mount / path.lstrip("/")
        # a container may see its own cgroup as the root, under the path that the host gave it
        for folder in {mount, own, *(above for above in own.parents if mount in above.parents)}:
            with suppress(OSError, ValueError):
                if controllers:
                    quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
                    period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
                else:  # "max 100000" where there is no limit: no number
                    quota_us, period_us = map(int, (folder / "cpu.max").read_text().split())
                if quota_us > 0:
                    yield quota_us / period_us
