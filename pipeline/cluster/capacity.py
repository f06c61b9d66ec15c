"""What the cluster has room for."""

import time
from typing import Any

import ray

from pipeline.cluster.calls import result, start_timeout
from pipeline.plan.machines import MAX_CPU_WORKERS, on_cpu, share
from schemas.errors import ClusterError, NodesError, WorkerDiedError
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.run.plan import ClusterSpec, WorkerFacts
from workers.actors.probe import probe

_LOOK_EVERY_S = 5.0


def workers_there(cluster: ClusterConfig, threads: int) -> int:
    """Return how many of the run's workers the cluster has room for now: one per GPU, or one per
    `threads` CPUs of a node.
    """
    return _most(cluster, _rooms(cluster, threads))


def on_gpus(cluster: ClusterConfig) -> bool:
    """Whether each worker gets a GPU."""
    return cluster.device != "cpu" and cluster_resources().get("GPU", 0) >= 1


def find_cluster(cluster: ClusterConfig, numerics: NumericsConfig, stored: str) -> ClusterSpec:
    """Describe the cluster to a planner; `stored` is the dtype of the checkpoint's weights.

    A task on a GPU looks at it. The memory of the hosts is what Ray counts on the nodes where
    workers can be. Raises ClusterError if there is no room for the workers that are asked for, or
    for any, and as `started` does.
    """
    rooms = _rooms(cluster, numerics.threads)
    count = _most(cluster, rooms)
    _require_room(cluster, numerics.threads, count)
    memory, nodes = share(rooms, count), min(count, len(rooms))
    if not on_gpus(cluster):
        return on_cpu(numerics.dtype, count, count * memory, nodes)
    call = probe.options(num_gpus=1, num_cpus=0).remote(cluster.device, numerics.dtype, stored)
    [facts] = started(cluster, [call])
    if facts.device == "cpu":
        return on_cpu(numerics.dtype, count, count * memory, nodes)
    return ClusterSpec(
        workers=count,
        device=facts.device,
        device_name=facts.device_name,
        device_memory=facts.device_memory,
        host_memory=memory,
        dtype=facts.dtype,
        nodes=nodes,
        per_node=-(-count // nodes),
    )


def started(cluster: ClusterConfig, calls: list[Any]) -> list[WorkerFacts]:
    """Return what each worker reports once it has started.

    Raises WorkerDiedError if the cluster loses a node while they are awaited, NodesError if they
    do not start in time.
    """
    end, waiting = time.monotonic() + start_timeout(cluster), calls
    kind = "GPU" if on_gpus(cluster) else "CPU"
    before = cluster_resources().get(kind, 0)
    while waiting:
        _, waiting = ray.wait(
            waiting, num_returns=len(waiting), timeout=_LOOK_EVERY_S, fetch_local=False
        )
        if waiting and cluster_resources().get(kind, 0) < before:
            raise WorkerDiedError("start of a worker: the cluster lost a node meanwhile")
        if waiting and time.monotonic() > end:
            raise NodesError(
                f"{len(waiting)} of {len(calls)} workers did not start within "
                f"{start_timeout(cluster):g} s: the cluster has no room for them now (`ray status` "
                "says what takes it); start again, or ask for fewer with --workers"
            )
    return [result(call, "start of a worker", start_timeout(cluster)) for call in calls]


def _require_room(cluster: ClusterConfig, threads: int, there: int) -> None:
    if cluster.device == "cuda" and not on_gpus(cluster):
        raise ClusterError(
            "cluster.device is cuda, but the Ray cluster has no GPU; use --device cpu"
        )
    if not there:
        none = f"no node with numerics.threads CPUs ({threads})"
        if cluster.device == "cpu":
            raise ClusterError(f"the Ray cluster has {none}; set fewer")
        raise ClusterError(
            f"the Ray cluster has no GPU, and {none}; deploy/with_gpus.py asks for GPUs and waits "
            "for them"
        )
    if cluster.workers and cluster.workers > there:
        each = "" if on_gpus(cluster) else f", each with numerics.threads CPUs ({threads})"
        what = f"{there} GPUs" if on_gpus(cluster) else f"room for {there}"
        raise ClusterError(
            f"cluster.workers is {cluster.workers}{each}; the Ray cluster has {what}; ask for fewer"
        )


def _most(cluster: ClusterConfig, rooms: list[tuple[int, int]]) -> int:
    room = sum(room for room, _ in rooms)
    return min(room, cluster.workers or (room if on_gpus(cluster) else MAX_CPU_WORKERS))


def _rooms(cluster: ClusterConfig, threads: int) -> list[tuple[int, int]]:
    """Return for each living node how many workers it has room for, and its bytes of memory."""
    kind, each = ("GPU", 1) if on_gpus(cluster) else ("CPU", threads)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    found = [(int(node.get(kind, 0)) // each, int(node.get("memory", 0))) for node in alive]
    return [(room, memory) for room, memory in found if room]


def cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
