"""What the cluster has room for."""

from typing import Any

import ray

from pipeline.cluster.calls import start_timeout, wait_for
from pipeline.plan.machines import MAX_CPU_WORKERS, on_cpu
from schemas.errors import ClusterError
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.run.plan import ClusterSpec, WorkerFacts
from workers.actors.probe import probe


def worker_count(cluster: ClusterConfig, threads: int) -> int:
    """Return the number of workers: as many as asked for, or as the cluster has room for now.

    Raises ClusterError if it has no room for the number asked for.
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
    """Return how many of the run's workers the cluster has room for now: one per GPU, or one per
    `threads` CPUs of a node.
    """
    if on_gpus(cluster):
        room = int(cluster_resources()["GPU"])
        return min(room, cluster.workers or room)
    room = sum(int(node["CPU"]) // threads for node in _nodes_with("CPU"))
    return min(max(1, room), cluster.workers or MAX_CPU_WORKERS)


def on_gpus(cluster: ClusterConfig) -> bool:
    """Whether each worker gets a GPU."""
    return cluster.device != "cpu" and cluster_resources().get("GPU", 0) >= 1


def find_cluster(cluster: ClusterConfig, numerics: NumericsConfig, stored: str) -> ClusterSpec:
    """Describe the cluster to a planner; `stored` is the dtype of the checkpoint's weights.

    A task on a GPU looks at it. The memory of the hosts is what Ray counts on the nodes where
    workers can be; for each GPU, what the node has that has least.
    """
    count = worker_count(cluster, numerics.threads)
    nodes = _nodes_with("GPU" if on_gpus(cluster) else "CPU")
    memory = int(sum(node.get("memory", 0) for node in nodes))
    if not on_gpus(cluster):
        return on_cpu(numerics.dtype, count, memory)
    call = probe.options(num_gpus=1, num_cpus=0).remote(cluster.device, numerics.dtype, stored)
    facts: WorkerFacts = wait_for({call: "look at a GPU"}, start_timeout(cluster))[0]
    if facts.device == "cpu":
        return on_cpu(numerics.dtype, count, memory)
    return ClusterSpec(
        workers=count,
        device=facts.device,
        device_name=facts.device_name,
        device_memory=facts.device_memory,
        host_memory=int(min(node.get("memory", 0) // node["GPU"] for node in nodes)),
        dtype=facts.dtype,
        nodes=max(1, min(count, len(nodes))),
    )


def _nodes_with(kind: str) -> list[dict[str, float]]:
    """Return the resources of each node that is alive and has any of this kind."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get(kind)]


def cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
