"""A model in a process of its own, so that its memory and its load are nobody else's."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import WorkerDiedError, WorkerError
from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import Timing
from workers.process.failures import short_of_memory
from workers.serving.generation import Loaded, ServedModel

_here: list[ServedModel] = []  # in the process of a model: it


class ModelProcess:
    """A `ServedModel` in a fresh process, which ends with the context."""

    def __init__(self, name: str, folder: Path, config: BenchConfig) -> None:
        self._name = name
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (folder, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def load(self) -> Loaded:
        """Load the model there."""
        loaded: Loaded = self._call("load")
        return loaded

    def prepare(self, workload: Workload) -> None:
        """Prepare a workload there."""
        self._call("prepare", workload)

    def measure(self, workload: Workload) -> Timing:
        """Measure a prepared workload there."""
        timing: Timing = self._call("measure", workload)
        return timing

    def peak_bytes(self) -> int | None:
        """Return the most memory that the model has taken there."""
        peak: int | None = self._call("peak_bytes")
        return peak

    def _call(self, method: str, *arguments: object) -> Any:
        """Raises what the method raises, WorkerError if memory is short there, and WorkerDiedError
        if the process is gone.
        """
        remedy = "bench smaller batches or shorter prompts, or one model at a time"
        try:
            return self._pool.submit(_do, method, arguments).result()
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                f"{self._name}: its process ended during {method}, as the system ends one that "
                f"takes too much memory; {remedy}"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error):
                raise
            raise WorkerError(f"{self._name}: out of memory during {method}; {remedy}") from error


def _start(folder: Path, config: BenchConfig) -> None:
    _here.append(ServedModel(folder, config))


def _do(method: str, arguments: tuple[object, ...]) -> Any:
    return getattr(_here[0], method)(*arguments)
