"""Processors by hand: files as the kernel shows them, in a folder that stands for /."""

import os
from pathlib import Path

import pytest

from common.cpus import available_cpus

N = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below ``root``."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "n"),
    [
        ({}, N),  # no Linux
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, N),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, N),
        # a limit above, another below: the least counts
        (
            {
                "proc/self/cgroup": "0::/user/shell\n",
                "sys/fs/cgroup/user/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/user/shell/cpu.max": "800000 100000\n",
            },
            1,
        ),
        # a container that sees its own cgroup as the root, under the host's path
        ({"proc/self/cgroup": "0::/docker/1ab\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        # version 1
        (
            {
                "proc/self/cgroup": "4:memory:/a\n1:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "80000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            N,
        ),
    ],
)
def test_the_least_of_cores_and_quotas_counts(
    files: dict[str, str], n: int, tmp_path: Path
) -> None:
    assert available_cpus(write(tmp_path, files)) == n


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux says where to run")
def test_a_process_held_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
