"""Continues a run by itself, from its run directory, when workers or nodes are lost."""

import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from pipeline.cluster.calls import start_timeout
from pipeline.cluster.capacity import on_gpus, workers_there
from pipeline.cluster.quarantine import Quarantine
from pipeline.progress import Progress
from pipeline.run import Run
from schemas.errors import (
    DiskError,
    NodesError,
    StorageFullError,
    WorkerDiedError,
    WorkerError,
    WorkerStartError,
)
from schemas.metrics import Metric
from schemas.request.config import RunConfig
from workers.actors.metrics import count

R = TypeVar("R")

_SETTLE_S = 5.0


class Supervisor:
    """Starts the workers of a run, as often as it takes.

    What it knows of losses survives from one start to the next, also while factors are trained
    between two of them.
    """

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._quarantine = Quarantine(progress.warn, config.on_failure)
        self._gpus = on_gpus(config.cluster)
        self._ids: object = None
        self._starting: float | None = None  # since when starts have failed
        self._failures: Counter[str] = Counter()  # of workers' own code in these starts
        self._committed: frozenset[str] | None = None
        self._losses = 0

    def run(self, start: Callable[[RunConfig, Quarantine], Run], stages: Callable[[Run], R]) -> R:
        """Run `stages` of a run that `start` starts; after a loss, again on the changed cluster.

        The pool replaces its own losses. A stage that needs all its workers raises WorkerDiedError:
        then the remaining ones are killed, and a new plan for the workers available now continues
        from what is committed. Raises WorkerError after `cluster.attempts` losses in a row without
        a new commit between them, NodesError if no workers are left, or only such as change the
        numbers, StorageFullError if a disk lacks room for the next stage.
        """
        while True:
            try:
                with self._progress.stage("start", 1, "cluster") as stage:
                    run = start(self._config_now(), self._quarantine)
                    stage.advance()
            except WorkerDiedError as error:
                self._wait_for_nodes(error)
                continue
            self._started(run)
            try:
                return stages(run)
            except WorkerDiedError as error:
                self._count(error, run.committed())
            except DiskError as error:
                if self._progress.ended.keys() <= {"inspect", "start"}:  # nothing is computed
                    raise
                raise StorageFullError(f"{error}; then start the same command again") from error
            finally:
                run.close()

    def _config_now(self) -> RunConfig:
        """Return the configuration, with as many workers as there is room for after a loss."""
        cluster, threads = self._config.cluster, self._config.numerics.threads
        there = workers_there(cluster, threads)
        undisturbed = self._ids is None and self._starting is None
        if (self._gpus and not on_gpus(cluster)) or not (there or undisturbed):
            what = "GPU" if self._gpus else f"node with numerics.threads CPUs ({threads})"
            raise NodesError(
                f"no {what} is left in the cluster; start the same command again when it has one"
            )
        if undisturbed or (cluster.workers in (None, there) and there >= (cluster.replicas or 1)):
            return self._config
        asked = "workers" if cluster.workers else "replicas"
        self._progress.warn(f"cluster.{asked} is {getattr(cluster, asked)}: going on with {there}")
        replicas = cluster.replicas and min(cluster.replicas, there)
        fewer = cluster.model_copy(update={"workers": there, "replicas": replicas})
        return self._config.model_copy(update={"cluster": fewer})

    def _wait_for_nodes(self, error: WorkerDiedError) -> None:
        """Give Ray time to learn which nodes are gone, which may take half a minute.

        Raises NodesError if starts have failed for too long, or if the workers' own code has
        failed alike `cluster.attempts` times.
        """
        if isinstance(error, WorkerStartError):
            self._count_failure(error)
        now, allowed = time.monotonic(), start_timeout(self._config.cluster)
        self._starting = self._starting or now
        if now - self._starting > allowed:
            raise NodesError(
                f"{error}; no start of the workers came through for {allowed:g} s; look at the "
                "nodes, then start the same command again to continue"
            ) from error
        self._progress.warn(f"{error}; starting again on what the cluster has then")
        time.sleep(_SETTLE_S)

    def _started(self, run: Run) -> None:
        """Note that workers started. Raises NodesError if they would compute other numbers."""
        self._starting = None
        self._failures.clear()
        if self._ids not in (None, run.ids):
            run.close()
            raise NodesError(
                f"the workers are on another kind of device now ({run.facts.device_name}), whose "
                "numbers would differ; start the same command again to begin anew on it"
            )
        self._ids = run.ids

    def _count(self, error: WorkerDiedError, committed: frozenset[str]) -> None:
        """Record a loss. Raises WorkerError after too many without progress."""
        before, most = self._committed, self._config.cluster.attempts
        if before is not None and committed - before:
            self._losses = 0
        self._committed = committed
        self._losses += 1
        if self._losses >= most:
            raise WorkerError(
                f"{error}; that was loss {self._losses} in a row without progress "
                f"(cluster.attempts is {most}); what is committed is kept: look at the nodes, then "
                "start the same command again to continue"
            ) from error
        count(Metric.RETRIES, kind="run")
        self._progress.warn(
            f"{error}; going on from {self._config.run_folder} "
            f"({self._losses} of {most} losses without progress)"
        )

    def _count_failure(self, error: WorkerStartError) -> None:
        most = self._config.cluster.attempts
        self._failures[str(error)] += 1
        if self._failures[str(error)] >= most:
            raise NodesError(
                f"{error}; {most} starts of the workers failed like that (cluster.attempts is "
                f"{most}), so it is no matter of chance: give all nodes the Python, the libraries "
                "and the program that the driver has, then start the same command again"
            ) from error
