"""Memory of this process and its host; what it holds itself is without files it has mapped."""

import contextlib
import ctypes
import gc
import re
from pathlib import Path

_M_ARENA_MAX = -8  # of malloc.h


def peak_anonymous_bytes() -> int:
    """An estimate of the peak: that of all resident memory, less the files mapped now."""
    return _field("VmHWM") - _field("RssFile") - _field("RssShmem")


def available_bytes() -> int:
    """Memory that can be had without swapping, in bytes: the host's, or the container's if less."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = [int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024]
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        free.append(int(most) - int(used.read_text(encoding="ascii")))
    return min(free)


def share_arena() -> None:
    """Let threads that start from now on allocate where all others do.

    glibc gives each an arena of its own, up to eight a core, and none of them shrinks below what
    is still in use at its end.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Free what only cycles hold, such as a tokenizer, and return what was freed to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024
