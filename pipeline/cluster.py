"""Ray: embedded or joined, its actors, and waiting that cannot last for ever."""

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.plan import MAX_CPU_WORKERS, worker_memory
from schemas.config import RunConfig
from schemas.errors import CompressorError, ConfigError, WorkerError
from schemas.model import ModelSpec
from schemas.plan import Plan
from workers.actors import Allocator, LayerShard

_OBJECT_STORE_BYTES = 512 * 1024**2
_START_TIMEOUT_S = 600.0

Actor = Any  # ray's actor handles carry no types


@contextlib.contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """Join the cluster that was named, or that this Ray job runs on; else start an embedded Ray.

    A Ray that the caller had already initialised is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(config)
    except SystemExit:  # ray.init's own handler of SIGTERM, while it starts
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init replaces it by one of its own
    try:
        yield
    finally:
        ray.shutdown()


def worker_count(config: RunConfig, layers: int) -> int:
    """Workers asked for, or one a GPU, or one a CPU core up to 8; never more than layers."""
    resources = _resources()
    gpus = int(resources.get("GPU", 0))
    if config.cluster.device == "cuda" and not gpus:
        raise ConfigError(
            "cluster.device is cuda, but the Ray cluster has no GPU; use --device cpu"
        )
    wanted = config.cluster.workers
    if wanted and gpus and config.cluster.device != "cpu" and wanted > gpus:
        raise ConfigError(f"cluster.workers is {wanted}, but the Ray cluster has {gpus} GPUs")
    if config.cluster.device == "cpu" or not gpus:
        threads = config.numerics.threads
        cores = int(resources.get("CPU", 1)) // threads
        if wanted and min(wanted, layers) > cores:
            raise ConfigError(
                f"cluster.workers is {wanted}, each with numerics.threads CPUs ({threads}); "
                f"the Ray cluster has room for {cores}"
            )
        available = max(1, min(cores, MAX_CPU_WORKERS))
    else:
        available = gpus
    return min(wanted or available, layers)


def start_workers(config: RunConfig, spec: ModelSpec, count: int, plan: Plan) -> list[Actor]:
    """`count` layer-shard actors, each on a GPU of its own where the cluster has any.

    Ray reserves the host memory of each where it schedules it. Raises ConfigError where all nodes
    together have too little.
    """
    gpus = 0 if config.cluster.device == "cpu" else int(bool(_resources().get("GPU")))
    memory = worker_memory(plan, on_gpu=bool(gpus))
    there = int(_resources().get("memory", 0))
    if count * memory > there:
        raise ConfigError(
            f"{count} workers take about {memory:,} bytes of host memory each, the Ray cluster has "
            f"{there:,}; use fewer --workers, or a larger cluster"
        )
    options = {
        "num_gpus": gpus,
        "num_cpus": 0 if gpus else config.numerics.threads,
        "memory": memory,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
    }
    return [LayerShard.options(**options).remote(config, spec) for _ in range(count)]  # type: ignore[attr-defined]


def start_allocator(config: RunConfig) -> Actor:
    """The one allocator actor."""
    return Allocator.remote(config)  # type: ignore[attr-defined]


def wait_for(
    calls: Mapping[Any, str], timeout_s: float, done: Callable[[Any], None] | None = None
) -> list[Any]:
    """Results of `calls` (reference -> what it is), in their order; `done` sees each as it comes.

    Raises the worker's own CompressorError, or WorkerError where a worker died, failed in another
    way, or nothing finished within `timeout_s`.
    """
    results: dict[Any, Any] = {}
    pending = list(calls)
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=timeout_s, fetch_local=False)
        if not ready:
            raise WorkerError(
                f"{calls[pending[0]]}: nothing finished within {timeout_s:g} s (waiting for "
                f"{len(pending)} items); start again, or raise cluster.item_timeout_s"
            )
        results[ready[0]] = result(ready[0], calls[ready[0]], timeout_s)
        if done:
            done(results[ready[0]])
    return [results[reference] for reference in calls]


def result(reference: Any, what: str, timeout_s: float) -> Any:
    """The small result of one finished call; errors as in `wait_for`."""
    again = "start the same command again to continue"
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CompressorError):
            raise cause from None
        if isinstance(cause, RayActorError):
            raise WorkerError(f"{what}: a worker died ({_first_line(cause)}); {again}") from None
        raise WorkerError(
            f"{what}: {type(cause).__name__} in a worker: {cause}; {again}"
        ) from error
    except (RayActorError, OutOfMemoryError) as error:
        raise WorkerError(f"{what}: a worker died ({_first_line(error)}); {again}") from None
    except GetTimeoutError:
        raise WorkerError(f"{what}: no result within {timeout_s:g} s; {again}") from None
    except RayError as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise WorkerError(f"{what}: {why}; {again}") from error


def start_timeout(config: RunConfig) -> float:
    """How long actors may take to be scheduled and to import their libraries."""
    return max(_START_TIMEOUT_S, config.cluster.item_timeout_s)


def _connect(config: RunConfig) -> None:
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _start_embedded(config)
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RayError) as error:
        raise ConfigError(f"cluster.address {address!r}: no Ray cluster there ({error})") from None


def _start_embedded(config: RunConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # a secret of this process, not a file in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cores = len(os.sched_getaffinity(0))
    wanted = (config.cluster.workers or 0) * config.numerics.threads
    ray.init(
        address="local",
        num_cpus=max(cores, wanted),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
