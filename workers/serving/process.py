"""A model in a process of its own, so that its memory and its load are nobody else's."""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Self

from schemas.errors import WorkerDiedError, WorkerError
from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import Timing
from workers.checkpoint.fetching import resolve
from workers.process.failures import first_line, short_of_memory
from workers.serving.generation import Loaded, ServedModel
from workers.serving.vllm_model import VllmModel

_here: list[ServedModel | VllmModel] = []  # in the process of a model: it


class ModelProcess:
    """A model that is served in a fresh process, which starts and ends with the context."""

    def __init__(self, name: str, folder: Path, config: BenchConfig) -> None:
        self._name = name
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (folder, config))

    def __enter__(self) -> Self:
        self._pool.submit(os.getpid)  # processes import their libraries side by side
        return self

    def __exit__(self, *_: object) -> None:
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
        """Raises CheckpointError and the like as the method does, WorkerError if memory is short
        there or a library fails, and WorkerDiedError if the process is gone.
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
                raise WorkerError(f"{self._name}: {first_line(error)}, in {method}") from error
            raise WorkerError(f"{self._name}: out of memory during {method}; {remedy}") from error


class Measured(NamedTuple):
    """What one model did: every round of every workload, and the most memory it took."""

    loaded: Loaded
    rounds: tuple[tuple[Timing, ...], ...]
    peak_bytes: int | None


class Job(NamedTuple):
    """A model to measure alone: a folder, or a hub id at a revision."""

    model: str
    revision: str | None
    config: BenchConfig


def engine(folder: Path, config: BenchConfig) -> ServedModel | VllmModel:
    """Return a model in the engine that is asked for, to be loaded."""
    return (VllmModel if config.engine == "vllm" else ServedModel)(folder, config)


def measure_alone(job: Job) -> Measured:
    """Measure a model in this process, from its load to its last workload."""
    config = job.config
    model = engine(resolve(job.model, job.revision), config)
    loaded = model.load()
    rounds = []
    for workload in config.workloads:
        model.prepare(workload)
        served = map(workload.in_round, range(config.rounds))
        rounds.append(tuple(model.measure(workload) for workload in served))
    return Measured(loaded, tuple(rounds), model.peak_bytes())


def _start(folder: Path, config: BenchConfig) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    _here.append(engine(folder, config))


def _end_with_parent() -> None:
    """End this process, which holds a model, when its parent is gone: killed, it ends no pool."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _do(method: str, arguments: tuple[object, ...]) -> Any:
    try:
        return getattr(_here[0], method)(*arguments)
    except (RuntimeError, ValueError) as error:  # of torch.compile some cannot be pickled
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
