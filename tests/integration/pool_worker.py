"""A worker of a pool that does as it is told: works, waits, fails, hangs or dies."""

import os
import signal
import time
from pathlib import Path

import ray

from schemas.errors import ConfigError, NumericsError, StorageError, StorageFullError

ERRORS: dict[str, Exception] = {
    "storage": StorageError("the storage does not answer"),
    "full": StorageFullError("the disk is full"),
    "numbers": NumericsError("it is not finite"),
    "bug": KeyError("x"),
}


@ray.remote(num_cpus=0)
class Worker:
    """Says who it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def work(self, item: str) -> tuple[str, str]:
        return self._name, item

    def meet(self, folder: Path, count: int) -> tuple[str, str]:
        """Return once `count` workers are here: so each of them has taken an item."""
        (folder / self._name).touch()
        while len(list(folder.iterdir())) < count:
            time.sleep(0.005)
        return self._name, "met"

    def die(self, unless: str) -> tuple[str, str]:
        if self._name != unless:
            os._exit(1)
        return self._name, "survived"

    def stop(self, unless: str) -> tuple[str, str]:
        """Stop this process, as one that hangs for good."""
        if self._name != unless:
            os.kill(os.getpid(), signal.SIGSTOP)
        return self._name, "went on"

    def fail(self, unless: str, how: str) -> tuple[str, str]:
        if self._name != unless:
            raise ERRORS[how]
        return self._name, "succeeded"

    def refuse(self) -> None:
        raise ConfigError("the worker's own words")


@ray.remote(num_cpus=0)
class Broken:
    """Never starts."""

    def __init__(self) -> None:
        raise ImportError("no module of that name")

    def refuse(self) -> None:
        """Wait for the start."""
