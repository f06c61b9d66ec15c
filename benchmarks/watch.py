"""Seconds and peak memory of the steps of a process, on its host and its GPU."""

import gc
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from workers.process.memory import anonymous_bytes

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """What a step took: seconds, and its peaks in bytes, of anonymous memory and of a GPU's."""

    name: str
    seconds: float
    peak: int
    on_gpu: int


class Watch:
    """Times steps, and samples the anonymous memory of this process meanwhile; each is logged."""

    def __init__(self) -> None:
        self.start = anonymous_bytes()
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step; what the one before left to the garbage collector is not counted."""
        gc.collect()
        cuda = torch.cuda.is_available() and torch.cuda.memory_reserved() > 0
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin, done, peaks = time.perf_counter(), threading.Event(), [anonymous_bytes()]

        def sample() -> None:
            while not done.wait(0.005):
                peaks[0] = max(peaks[0], anonymous_bytes())

        sampler = threading.Thread(target=sample, daemon=True)  # ends with a step that fails
        sampler.start()
        yield
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        done.set()
        sampler.join()
        on_gpu = torch.cuda.max_memory_allocated() if cuda else 0
        self.steps.append(Step(name, seconds, peaks[0], on_gpu))
        logger.info("%s: %.1f s", name, seconds)
