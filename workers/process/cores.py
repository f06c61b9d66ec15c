"""The cores that this process may use."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": microseconds of each period, or "max"


def available_cores() -> int:
    """Return the cores of its affinity mask, or the container's CPU quota in cores if fewer."""
    cores = len(os.sched_getaffinity(0))
    if not _QUOTA.is_file():
        return cores
    quota, period = _QUOTA.read_text(encoding="ascii").split()
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
