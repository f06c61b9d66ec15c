"""Ray Train trains the factors of an output against the base, on all of the cluster.

It stands between two starts of a run's workers: what they held is free, and what they committed is
all that it needs. Its own checkpoints are below `training` in the run directory until it ends.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem  # type: ignore[import-untyped]
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.calls import Actor, explained, start_timeout
from pipeline.cluster.capacity import on_gpus, workers_there
from pipeline.progress import Progress
from pipeline.report.wording import figure
from pipeline.request.inputs import Inputs
from schemas.errors import CompressorError, NodesError, RunError, StorageError, WorkerError
from schemas.location import Location
from schemas.result.recovery import Look, Refined
from workers.actors.recovery import recover
from workers.process import failures
from workers.recovery.job import Job, recovery_of
from workers.storage.keys import TRAINING, recovered_key, recovered_text_key, refined_prefix
from workers.storage.places import folders_in, read_bytes, remove_below
from workers.storage.store import Store
from workers.storage.tensorfile import entries

_LOOK_EVERY_S = 1.0
_PASSING = (WorkerError, StorageError)  # these, and no class below them
_COORDINATOR = "AutoscalingCoordinator"  # and its namespace
_START_S = 60.0  # how long Ray Train waits for its workers each time


def train(job: Job, inputs: Inputs, progress: Progress, require: Callable[[], None]) -> None:
    """Train the factors of one output; the workers of the run must have ended. What gets further
    between losses of workers is begun again, from what was saved.

    Raises what `require` raises, if the run directory is no longer this driver's; the error of a
    training worker, or WorkerError if training failed in another way.
    """
    text = inputs.recovery
    if text is None:
        raise RunError("the run has no text for its recovery; start it again")
    require()
    store = Store(job.config.run_folder)
    store.forget(recovered_key(job.identity, None))  # of factors that are not all there any more
    windows = {"windows": text.windows.int(), "held_out": text.held_out.int()}
    store.commit(recovered_text_key(job.identity), entries(windows))
    training = job.config.run_folder / TRAINING  # that of the next ratio comes on top
    layers = job.spec.layers if job.config.refinement.enabled else 0
    steps = job.config.recovery.steps(len(text.windows)) if job.config.recovery.enabled else 0
    found = None
    with progress.stage("recover", layers + steps, "steps") as stage, _coordinator_ends():
        while found is None:
            _tidy(training / job.identity, progress)
            begun, fit = stage.done, _fit(job)
            for event in fit.events():
                require()
                if isinstance(event, Refined):
                    stage.advance(max(event.layer + 1 - stage.done, 0))
                    continue
                progress.note(_said(event))
                done = layers + event.step if event.step else stage.done
                if done > stage.done:  # else a worker was lost, and training went back
                    stage.advance(done - stage.done, event.tokens - stage.tokens)
            require()
            found = recovery_of(store, job.identity)
            if found is None:  # else all is committed, and the fit may have failed after that
                failure, further = fit.failure(), stage.done > begun
                if type(failure) not in _PASSING or not (further and fit.has_room()):
                    raise failure from fit.error
                cause = str(failure).partition(";")[0]
                progress.warn(f"{cause}; it goes on from its last checkpoint, as it got further")
    remove_below(training / job.identity)
    Store(training).discard(refined_prefix(job.identity))
    progress.note(
        f"recovery: {figure(found.before)} -> {figure(found.after)} on held-out text in "
        f"{found.seconds:,.0f} s"
    )


def _tidy(place: Location, progress: Progress) -> None:
    """Remove the states that a driver which was killed left without a record; or all of them, if
    the record itself is damaged (Ray overwrites it in place): then training begins anew.
    """
    there = {name for name in folders_in(place) if name.startswith("checkpoint_")}
    try:
        record = json.loads(read_bytes(place / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME))
        known = {state["checkpoint_dir_name"] for state in record["checkpoint_results"]}
    except FileNotFoundError:
        known = set[str]()
    except (ValueError, LookupError, TypeError):
        known = {"of a damaged record"}
    if not known <= there:
        progress.warn(f"{place}: its saved states are damaged; what is not refined is trained anew")
        remove_below(place)
        return
    for name in there - known:
        remove_below(place / name)


@contextlib.contextmanager
def _coordinator_ends() -> Iterator[None]:
    """End the actor by which Ray Train asks the autoscaler for workers, unless it was there before,
    when another job may need it. It would stay, and ask for nothing three times a minute, in the
    place of what jobs after this one ask for.
    """
    shared = _coordinator() is not None
    try:
        yield
    finally:
        if not shared and (mine := _coordinator()) is not None:
            ray.kill(mine)


def _coordinator() -> Actor | None:
    with contextlib.suppress(ValueError, RayError):
        return ray.get_actor(_COORDINATOR, _COORDINATOR)
    return None


def _fit(job: Job) -> "_Fit":
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    return _Fit(job, _trainer(job, reports), reports)


def _trainer(job: Job, reports: Queue) -> TorchTrainer:
    config = job.config
    cluster, threads = config.cluster, config.numerics.threads
    there = workers_there(cluster, threads)
    least = job.least_workers  # it is elastic above
    system, path = _storage(config.run_folder / TRAINING)
    return TorchTrainer(
        recover,
        train_loop_config={"job": job, "reports": reports},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if job.on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(least, there) if there > least else least,  # type: ignore[arg-type]
            use_gpu=job.on_gpu,
            resources_per_worker={"GPU": 1, "CPU": 0} if job.on_gpu else {"CPU": threads},
        ),
        run_config=TrainConfig(
            name=job.identity,
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(
                max_failures=cluster.attempts - 1,
                controller_failure_limit=round(start_timeout(cluster) / _START_S),  # type: ignore[call-arg]
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _storage(place: Location) -> tuple[PyFileSystem | None, str]:
    """Return where states go as Ray Train takes it: into a store by the client that all else uses,
    as pyarrow's own know fewer stores and other settings.
    """
    if isinstance(place, Path):
        return None, str(place)
    system, path = fsspec.url_to_fs(str(place), use_listings_cache=False)  # several write there
    return PyFileSystem(FSSpecHandler(system)), path


class _Fit(threading.Thread):
    """Training on a thread of its own, so that what it reports can be shown meanwhile."""

    def __init__(self, job: Job, trainer: TorchTrainer, reports: Queue) -> None:
        super().__init__(daemon=True)
        self._job, self._trainer, self._reports = job, trainer, reports
        self.error: Exception | None = None

    def events(self) -> Iterator[Look | Refined]:
        """Start, and yield what is reported, until training ends.

        Raises NodesError if the cluster no longer has the workers for it.
        """
        self.start()
        enough, patience = time.monotonic(), start_timeout(self._job.config.cluster)
        try:
            while self.is_alive() or not self._reports.empty():
                with contextlib.suppress(Empty):
                    yield self._reports.get(timeout=_LOOK_EVERY_S)
                if self.has_room():
                    enough = time.monotonic()
                elif time.monotonic() - enough > patience:  # Ray Train itself would wait for ever
                    raise NodesError(
                        f"recovery: for {patience:g} s the cluster has had no room for "
                        f"{self._job.least_workers} workers, and fewer cannot go on; start the "
                        "same command again when it has"
                    )
        except RayError as error:
            raise explained(error, "what training reports", _LOOK_EVERY_S) from error
        finally:  # what is still trained then, after an interrupt, ends at its next report
            self._reports.shutdown(force=True)

    def has_room(self) -> bool:
        """Whether the cluster could give the workers, on GPUs if that is where it trains."""
        cluster, threads = self._job.config.cluster, self._job.config.numerics.threads
        lost = self._job.on_gpu and not on_gpus(cluster)
        return not lost and workers_there(cluster, threads) >= self._job.least_workers

    def run(self) -> None:
        """Train; what it raises is kept."""
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 (it is raised where it is awaited)
            self.error = error

    def failure(self) -> CompressorError:
        """Wait for the end; return the error that training ended with, as it has no result."""
        self.join()
        if self.error is None:
            return RunError("recovery ended without a result; start it again")
        raised: dict[int, Any] = getattr(self.error, "worker_failures", {})
        for cause in raised.values():
            if isinstance(cause, CompressorError):
                return cause
        for cause in raised.values():
            if failures.short_of_memory(cause):
                return WorkerError(
                    f"recovery: {failures.first_line(cause)}; lower recovery.micro_batch or "
                    "recovery.sequence_length, or set recovery.offload to true"
                )
            place = self._job.config.run_folder
            found = failures.explained(cause, "recovery", place) if _of_system(cause) else None
            if found is not None:
                return found
        causes = [_last_line(error) for error in (*raised.values(), self.error)]
        first = next((line for line in causes if "onnection" not in line), causes[0])
        return WorkerError(
            f"recovery: {first}; start the same command again to continue from its last checkpoint"
        )


def _of_system(error: Exception) -> bool:
    """Whether a disk or a mount is at fault, not the connection to a worker that was lost."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _said(look: Look) -> str:
    trained = "" if look.loss is None else f", {figure(look.loss)} on what was trained on"
    return f"recover: step {look.step}: {figure(look.held_out)} on held-out text{trained}"
