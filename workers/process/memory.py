"""Memory of this process and its host, and its disks; own memory excludes files it has mapped."""

import contextlib
import ctypes
import gc
import re
import shutil
from pathlib import Path

from schemas.location import Location

_CONTAINER = Path("/sys/fs/cgroup")
_M_ARENA_MAX = -8  # of malloc.h


def peak_anonymous_bytes() -> int:
    """Estimate the peak of own memory: the peak of resident memory, less the files mapped now."""
    return _field("VmHWM") - _field("RssFile") - _field("RssShmem")


def anonymous_bytes() -> int:
    """Return the own memory of this process now."""
    return _field("RssAnon")


def resident_bytes() -> int:
    """Return the memory of this process now, files that it has mapped included."""
    return _field("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever had, files that it had mapped included."""
    return _field("VmHWM")


def available_bytes() -> int:
    """Return the bytes available without swapping: the host's, or the container's if less.

    Files that were read or written are no use of it, as their pages are given up for others.
    """
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = [int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024]
    if (limit := _CONTAINER / "memory.max").is_file():
        most, used, told = (
            (_CONTAINER / name).read_text(encoding="ascii")
            for name in (limit.name, "memory.current", "memory.stat")
        )
        if most.strip() != "max":
            files = re.findall(r"^(?:in)?active_file (\d+)$", told, re.MULTILINE)
            free.append(int(most) - int(used) + sum(map(int, files)))
    return min(free)


def share_arena() -> None:
    """Let threads that start from now on allocate from one shared arena.

    glibc gives each thread its own arena, up to eight per core, and none shrinks below its last
    block in use.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Free what only cycles hold, such as a tokenizer, and return freed memory to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024


def free_bytes(place: Location) -> int | None:
    """Return what is free on the disk of a folder, which need not exist yet; None for a store."""
    if not isinstance(place, Path):
        return None
    full = place.expanduser().absolute()
    there = next(part for part in (full, *full.parents) if part.exists())
    return shutil.disk_usage(there).free
