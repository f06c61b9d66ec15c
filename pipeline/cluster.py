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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.machines import MAX_CPU_WORKERS, on_cpu
from pipeline.progress import Progress
from schemas.config import ClusterConfig, NumericsConfig, RunConfig
from schemas.errors import CompressorError, ConfigError, WorkerDiedError, WorkerError
from schemas.model import ModelSpec
from schemas.plan import ClusterSpec, Plan, WorkerFacts
from workers.actors import Allocator, LayerShard, probe

_OBJECT_STORE_BYTES = 512 * 1024**2
_START_TIMEOUT_S = 600.0

Actor = Any  # ray's actor handles carry no types


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig, threads: int) -> Iterator[None]:
    """Join the cluster that was named, or that this Ray job runs on; else start an embedded Ray.

    An embedded one has room for the workers asked for, of `threads` CPUs each. A Ray that the
    caller had already initialised is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(cluster, threads)
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


def worker_count(cluster: ClusterConfig, threads: int) -> int:
    """Workers of a run: those asked for, or as many as the cluster has room for now."""
    wanted, there = cluster.workers, room(cluster, threads)
    if cluster.device == "cuda" and not on_gpus(cluster):
        raise ConfigError(
            "cluster.device is cuda, but the Ray cluster has no GPU; use --device cpu"
        )
    if wanted and wanted > there:
        each = "" if on_gpus(cluster) else f", each with numerics.threads CPUs ({threads})"
        what = f"{there} GPUs" if on_gpus(cluster) else f"room for {there}"
        raise ConfigError(
            f"cluster.workers is {wanted}{each}; the Ray cluster has {what}; ask for fewer"
        )
    return wanted or min(there, there if on_gpus(cluster) else MAX_CPU_WORKERS)


def room(cluster: ClusterConfig, threads: int) -> int:
    """Workers that the cluster could hold: one a GPU, or one for every `threads` CPUs."""
    if on_gpus(cluster):
        return int(_resources()["GPU"])
    return max(1, int(_resources().get("CPU", 1)) // threads)


def on_gpus(cluster: ClusterConfig) -> bool:
    """Whether each worker gets a GPU."""
    return cluster.device != "cpu" and _resources().get("GPU", 0) >= 1


def find_cluster(cluster: ClusterConfig, numerics: NumericsConfig, stored: str) -> ClusterSpec:
    """What the cluster has for a run, as a planner sees it; `stored` is the dtype of its weights.

    A GPU is looked at by a task that has one; the memory of the hosts is what Ray counts.
    """
    count, resources = worker_count(cluster, numerics.threads), _resources()
    memory = int(resources.get("memory", 0))
    if not on_gpus(cluster):
        return on_cpu(numerics.dtype, count, memory)
    call = probe.options(num_gpus=1, num_cpus=0).remote(cluster.device, numerics.dtype, stored)
    facts: WorkerFacts = wait_for({call: "look at a GPU"}, start_timeout(cluster))[0]
    if facts.device == "cpu":
        return on_cpu(numerics.dtype, count, memory)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]  # type: ignore[no-untyped-call]
    return ClusterSpec(
        workers=count,
        device=facts.device,
        device_name=facts.device_name,
        device_memory=facts.device_memory,
        host_memory=memory // int(resources["GPU"]),
        dtype=facts.dtype,
        nodes=max(1, min(count, len(nodes))),
    )


def start_workers(config: RunConfig, spec: ModelSpec, count: int, plan: Plan) -> list[Actor]:
    """`count` layer-shard actors of a compression."""
    threads = config.numerics.threads
    actor = with_resources(LayerShard, config.cluster, threads, plan.host_memory)
    return [actor.remote(config, spec) for _ in range(count)]


def with_resources(actor: Any, cluster: ClusterConfig, threads: int, memory: int) -> Any:
    """An actor class, each of its actors on a GPU of its own where the cluster has any.

    Ray reserves the host memory of each, in bytes, where it schedules it.
    """
    gpus = on_gpus(cluster)
    return actor.options(
        num_gpus=int(gpus),
        num_cpus=0 if gpus else threads,
        memory=memory,
        scheduling_strategy="SPREAD",
        max_restarts=0,
    )


def agree(cluster: ClusterConfig, workers: list[Actor], progress: Progress) -> WorkerFacts:
    """What started workers run on. Raises WorkerError where it is not the same for all."""
    calls = {worker.prepare.remote(): "start of a worker" for worker in workers}
    facts: list[WorkerFacts] = wait_for(calls, start_timeout(cluster))
    kinds = {(fact.device, fact.device_name, fact.dtype) for fact in facts}
    if len(kinds) > 1:
        raise WorkerError(
            f"the workers differ in device or dtype ({sorted(kinds)}), so their numbers would; "
            "use nodes of one kind, or --device cpu"
        )
    if facts[0].gpu_reserved and facts[0].device == "cpu":
        progress.warn("Ray gave each worker a GPU, but torch sees none there: computing on the CPU")
    return facts[0]


def start_allocator(config: RunConfig, node: str) -> Actor:
    """The one allocator actor, beside a worker: the head of a cluster may be for no work."""
    beside = NodeAffinitySchedulingStrategy(node, soft=False)
    return Allocator.options(scheduling_strategy=beside).remote(config)  # type: ignore[attr-defined]


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
    died = f"{what}: a worker died"
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CompressorError):
            raise cause from None
        if isinstance(cause, RayActorError):
            raise WorkerDiedError(
                f"{what}: a worker died ({_first_line(cause)}); {again}"
            ) from None
        raise WorkerError(
            f"{what}: {type(cause).__name__} in a worker: {cause}; {again}"
        ) from error
    except (RayActorError, OutOfMemoryError) as error:
        raise WorkerDiedError(f"{died} ({_first_line(error)}); {again}") from None
    except GetTimeoutError:
        raise WorkerError(f"{what}: no result within {timeout_s:g} s; {again}") from None
    except RayError as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise WorkerError(f"{what}: {why}; {again}") from error


def start_timeout(cluster: ClusterConfig) -> float:
    """How long actors may take to be scheduled and to import their libraries, in seconds."""
    return max(_START_TIMEOUT_S, cluster.item_timeout_s)


def _connect(cluster: ClusterConfig, threads: int) -> None:
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _start_embedded(cluster, threads)
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RayError) as error:
        raise ConfigError(f"cluster.address {address!r}: no Ray cluster there ({error})") from None


def _start_embedded(cluster: ClusterConfig, threads: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # a secret of this process, not a file in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cores = len(os.sched_getaffinity(0))
    wanted = (cluster.workers or 0) * threads
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
