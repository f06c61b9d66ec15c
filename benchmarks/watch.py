"""Seconds and peak memory of the steps of a process, while it takes them."""

import gc
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """What a step took: seconds, and its peak of anonymous memory in bytes."""

    name: str
    seconds: float
    peak: int


class Watch:
    """Times steps, and samples the anonymous memory of this process meanwhile."""

    def __init__(self) -> None:
        self.start = anonymous_bytes()
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step; what the one before left to the garbage collector is not counted."""
        gc.collect()
        begin, done, peaks = time.perf_counter(), threading.Event(), [anonymous_bytes()]

        def sample() -> None:
            while not done.wait(0.005):
                peaks[0] = max(peaks[0], anonymous_bytes())

        sampler = threading.Thread(target=sample)
        sampler.start()
        yield
        done.set()
        sampler.join()
        self.steps.append(Step(name, time.perf_counter() - begin, peaks[0]))


def anonymous_bytes() -> int:
    """Anonymous memory of this process now."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024
