"""Waiting for actor calls with a time limit, and what a failed call means."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from schemas.errors import (
    CompressorError,
    WorkerDiedError,
    WorkerError,
    WorkerHungError,
    WorkerStartError,
)
from schemas.request.groups import ClusterConfig
from workers.process.failures import first_line

# What Ray raises when a process, or an object that it held, is gone: it died by itself or with its
# node, or Ray's memory monitor killed it because the host ran out of memory.
_GONE = (
    RayActorError,
    OutOfMemoryError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
)
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:: .*)?$", re.MULTILINE)  # the last line of a traceback
_AGAIN = "then start the same command again to continue"
_REMEDIES: dict[type[RayError], str] = {
    ObjectStoreFullError: "give the nodes a larger object store (ray start --object-store-memory), "
    f"or make calibration.micro_batch smaller; {_AGAIN}",
    OutOfDiskError: "Ray spills objects to a disk that is full: make room in the nodes' temporary "
    f"folders (ray start --temp-dir), {_AGAIN}",
    RaySystemError: f"the Ray cluster itself failed: look at `ray status`, {_AGAIN}",
}


def wait_for(
    calls: Mapping[Any, str], timeout_s: float, done: Callable[[Any], None] | None = None
) -> list[Any]:
    """Return the results of `calls` (reference -> description) in order; `done` gets each at once.

    Raises the worker's own CompressorError; WorkerDiedError if a worker died, WorkerHungError if
    nothing finished within `timeout_s`, WorkerError if a call failed in another way.
    """
    results: dict[Any, Any] = {}
    pending = list(calls)
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=timeout_s, fetch_local=False)
        if not ready:
            raise WorkerHungError(
                f"{calls[pending[0]]}: nothing finished within {timeout_s:g} s (waiting for "
                f"{len(pending)} items); raise cluster.item_timeout_s if that is too short"
            )
        results[ready[0]] = result(ready[0], calls[ready[0]], timeout_s)
        if done:
            done(results[ready[0]])
    return [results[reference] for reference in calls]


def result(reference: Any, what: str, timeout_s: float) -> Any:
    """Return the small result of one call; raises as `wait_for` does."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError as error:
        found = explained(error, what, timeout_s)
        raise found from error if type(found) is WorkerError else None


def explained(error: RayError, what: str, timeout_s: float) -> CompressorError:
    """Turn a Ray error into an error of this program that says what it means and what helps."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, CompressorError):
        return cause
    if isinstance(cause, GetTimeoutError):
        return WorkerHungError(
            f"{what}: no result within {timeout_s:g} s; raise cluster.item_timeout_s if that is "
            "too short"
        )
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return WorkerStartError(f"{what}: {_raised(cause)}, while a worker started")
    if isinstance(cause, RuntimeEnvSetupError):
        reason = " ".join((cause.error_message or "for no reason that Ray gives").split())[-500:]
        return WorkerStartError(f"{what}: its runtime environment could not be set up: {reason}")
    why = f"{type(cause).__name__}: {first_line(cause)}"
    if isinstance(cause, _GONE):
        return WorkerDiedError(f"{what}: a worker died ({why})")
    for kind, remedy in _REMEDIES.items():
        if isinstance(cause, kind):
            return WorkerError(f"{what}: {why}; {remedy}")
    return WorkerError(f"{what}: {why}, in a worker; start the same command again to continue")


def _raised(error: RayActorError) -> str:
    """Return what the actor's code raised, taken from the traceback text that Ray gives."""
    lines: list[str] = _RAISED.findall(str(error))
    return lines[-1] if lines else first_line(error)


_START_TIMEOUT_S = 600.0

Actor = Any  # ray's actor handles carry no types


def stop(actors: Iterable[Actor]) -> None:
    """Kill actors, alive or not: what they have reserved becomes free."""
    for actor in actors:
        ray.kill(actor)


def start_timeout(cluster: ClusterConfig) -> float:
    """How long actors may take to be scheduled and to import their libraries, in seconds."""
    return max(_START_TIMEOUT_S, cluster.item_timeout_s)
