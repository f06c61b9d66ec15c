"""Ray: embedded or joined, what it has, and its actors."""

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.joining import require_answer
from pipeline.machines import MAX_CPU_WORKERS, on_cpu
from pipeline.object_store import within_memory
from pipeline.progress import Progress
from pipeline.search_path import for_workers
from pipeline.waiting import result, wait_for
from schemas.config import ClusterConfig, NumericsConfig, RunConfig
from schemas.errors import ClusterError, WorkerDiedError, WorkerError
from schemas.model import ModelSpec
from schemas.plan import ClusterSpec, Plan, WorkerFacts
from workers.actors import Allocator, LayerShard, probe
from workers.logs import as_json

_START_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 5.0

Actor = Any  # ray's actor handles carry no types
T = TypeVar("T")


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig, threads: int, store_bytes: int = 0) -> Iterator[None]:
    """Join the cluster that was named, or that this Ray job runs on; else start an embedded Ray.

    An embedded one has room for the workers asked for, of `threads` CPUs each, and for
    `store_bytes` of hidden states where memory allows. A Ray that the caller had already
    initialised is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(cluster, threads, store_bytes)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init replaces it by one of its own
    except SystemExit:  # ray.init's own handler of SIGTERM, while it starts
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    try:
        yield
    finally:
        ray.shutdown()


def worker_count(cluster: ClusterConfig, threads: int) -> int:
    """Workers of a run: those asked for, or as many as the cluster has room for now.

    Raises ClusterError where it has no room for those asked for.
    """
    wanted, there = cluster.workers, workers_there(cluster, threads)
    if cluster.device == "cuda" and not on_gpus(cluster):
        raise ClusterError(
            "cluster.device is cuda, but the Ray cluster has no GPU; use --device cpu"
        )
    if wanted and wanted > there:
        each = "" if on_gpus(cluster) else f", each with numerics.threads CPUs ({threads})"
        what = f"{there} GPUs" if on_gpus(cluster) else f"room for {there}"
        raise ClusterError(
            f"cluster.workers is {wanted}{each}; the Ray cluster has {what}; ask for fewer"
        )
    return there


def workers_there(cluster: ClusterConfig, threads: int) -> int:
    """As many of the workers of a run as the cluster has room for now."""
    most = cluster.workers or (None if on_gpus(cluster) else MAX_CPU_WORKERS)
    return min(room(cluster, threads), most or sys.maxsize)


def room(cluster: ClusterConfig, threads: int) -> int:
    """Workers that the cluster could hold: one a GPU, or one for every `threads` CPUs."""
    if on_gpus(cluster):
        return int(_resources()["GPU"])
    return max(1, int(_resources().get("CPU", 1)) // threads)


def on_gpus(cluster: ClusterConfig) -> bool:
    """Whether each worker gets a GPU."""
    return cluster.device != "cpu" and _resources().get("GPU", 0) >= 1


def stop(actors: Iterable[Actor]) -> None:
    """Kill actors, whether they still live or not: what they have reserved becomes free."""
    for actor in actors:
        ray.kill(actor)


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

    Ray reserves the host memory of each, in bytes, where it schedules it. It keeps no history of
    their calls: that of the micro-batches of many runs would fill the memory of its head.
    """
    gpus = on_gpus(cluster)
    return actor.options(
        num_gpus=int(gpus),
        num_cpus=0 if gpus else threads,
        memory=memory,
        scheduling_strategy="SPREAD",
        max_restarts=0,
        enable_task_events=False,
    )


def agree(cluster: ClusterConfig, workers: list[Actor], progress: Progress) -> list[WorkerFacts]:
    """What each started worker runs on. Raises WorkerError where its numbers would differ."""
    facts = _started(cluster, workers)
    kinds = {(fact.device, fact.device_name, fact.dtype) for fact in facts}
    if len(kinds) > 1:
        raise WorkerError(
            f"the workers differ in device or dtype ({sorted(kinds)}), so their numbers would; "
            "use nodes of one kind, or --device cpu"
        )
    if facts[0].gpu_reserved and facts[0].device == "cpu":
        progress.warn("Ray gave each worker a GPU, but torch sees none there: computing on the CPU")
    return facts


def chains(workers: Sequence[T], facts: Sequence[WorkerFacts], length: int) -> list[list[T]]:
    """Workers in chains of `length`, their number a multiple of it, that seldom leave a node.

    Each node has as many chains of its own as it has room for; those that are left have the rest
    node by node.
    """
    nodes: dict[str, list[T]] = {}
    for worker, fact in zip(workers, facts, strict=True):
        nodes.setdefault(fact.node, []).append(worker)
    whole, rest = list[T](), list[T]()
    for mine in nodes.values():
        fits = len(mine) // length * length
        whole += mine[:fits]
        rest += mine[fits:]
    ordered = whole + rest
    return [ordered[at : at + length] for at in range(0, len(ordered), length)]


def _started(cluster: ClusterConfig, workers: list[Actor]) -> list[WorkerFacts]:
    """What each worker says once it is there.

    Raises WorkerDiedError where the cluster shrinks below what they need while they are awaited,
    WorkerError where they do not come.
    """
    calls = [worker.prepare.remote() for worker in workers]
    end, waiting = time.monotonic() + start_timeout(cluster), calls
    kind = "GPU" if on_gpus(cluster) else "CPU"
    before = _resources().get(kind, 0)
    while waiting:
        _, waiting = ray.wait(
            waiting, num_returns=len(waiting), timeout=_LOOK_EVERY_S, fetch_local=False
        )
        if waiting and _resources().get(kind, 0) < before:
            raise WorkerDiedError("start of a worker: the cluster lost a node meanwhile")
        if waiting and time.monotonic() > end:
            raise WorkerError(
                f"{len(waiting)} of {len(workers)} workers did not start within "
                f"{start_timeout(cluster):g} s: the cluster has no room for them now (`ray status` "
                "says what takes it); start again, or ask for fewer with --workers"
            )
    return [result(call, "start of a worker", start_timeout(cluster)) for call in calls]


def start_allocator(config: RunConfig, node: str) -> Actor:
    """The one allocator actor, beside a worker: the head of a cluster may be for no work."""
    beside = NodeAffinitySchedulingStrategy(node, soft=False)
    options = {"scheduling_strategy": beside, "enable_task_events": False}
    return Allocator.options(**options).remote(config)  # type: ignore[attr-defined]


def start_timeout(cluster: ClusterConfig) -> float:
    """How long actors may take to be scheduled and to import their libraries, in seconds."""
    return max(_START_TIMEOUT_S, cluster.item_timeout_s)


def _connect(cluster: ClusterConfig, threads: int, store_bytes: int) -> None:
    setting = "cluster.address" if cluster.address else "RAY_ADDRESS"
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _start_embedded(cluster, threads, store_bytes)
        return
    job: dict[str, Any] = {} if "://" in address else {"job_config": _Job()}  # a client adds none
    try:
        require_answer(address, setting)
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            # What workers say stays in Ray's own log files where ours is JSON: Ray would prefix it.
            log_to_driver=not as_json(),
            **job,
        )
    except (ConnectionError, ValueError, RayError) as error:
        why = " ".join(str(error).split())
        raise ClusterError(f"{setting} {address!r}: no Ray cluster there ({why})") from None
    except RuntimeError as error:  # ray compares its own version and Python's
        if "ersion mismatch" not in str(error):
            raise
        raise ClusterError(
            f"{setting} {address!r}: driver and cluster differ ({error}); start the driver "
            "with the Ray and the Python of the cluster, or install the same ones there"
        ) from None


def _start_embedded(cluster: ClusterConfig, threads: int, store_bytes: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # a secret of this process, not a file in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray's own switch for a node that is no cluster's: it listens on loopback alone.
    ray_constants.ENABLE_RAY_CLUSTER = False
    cores = len(os.sched_getaffinity(0))
    wanted = (cluster.workers or 0) * threads
    ray.init(
        address="local",
        num_cpus=max(cores, wanted),
        object_store_memory=within_memory(store_bytes),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        job_config=_Job(),
    )


class _Job(JobConfig):
    """A job whose workers import what is installed, wherever the driver was started.

    Ray puts the folder of the script and the working directory first on their path, where a folder
    called workers or datasets hides ours or a library; it does not where a job brings its own.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=for_workers())

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
