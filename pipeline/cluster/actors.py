"""The actors of a run: starting them, checking that they agree, arranging them in chains."""

from collections.abc import Sequence
from typing import Any, TypeVar

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.calls import Actor
from pipeline.cluster.capacity import on_gpus, started
from pipeline.progress import Progress
from schemas.errors import NodesError
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from schemas.run.plan import WorkerFacts
from workers.actors.allocator import Allocator
from workers.actors.layer_shard import LayerShard

T = TypeVar("T")


def start_workers(cluster: ClusterConfig, threads: int, memory: int, count: int) -> list[Actor]:
    """Start `count` workers, each on its own GPU if the cluster has any.

    Ray reserves the host memory of each (`memory`, in bytes) on its node. It keeps no history of
    their calls: the micro-batches of many runs would fill the memory of its head.
    """
    gpus = on_gpus(cluster)
    worker: Any = LayerShard
    options = worker.options(
        num_gpus=int(gpus),
        num_cpus=0 if gpus else threads,
        memory=memory,
        scheduling_strategy="SPREAD",
        max_restarts=0,
        enable_task_events=False,
    )
    return [options.remote(threads) for _ in range(count)]


def agree(cluster: ClusterConfig, calls: list[Any], progress: Progress) -> list[WorkerFacts]:
    """Return what each worker runs on; each of `calls` prepares one worker and reports it.

    Raises NodesError if the workers differ so that their numbers would.
    """
    facts = started(cluster, calls)
    kinds = {one.kind for one in facts}
    if len(kinds) > 1:
        raise NodesError(
            f"the workers differ in device or dtype ({sorted(kinds)}), so their numbers would; "
            "use nodes of one kind, or --device cpu --dtype float32"
        )
    if facts[0].gpu_reserved and facts[0].device == "cpu":
        progress.warn("Ray gave each worker a GPU, but torch sees none there: computing on the CPU")
    return facts


def chains(workers: Sequence[T], facts: Sequence[WorkerFacts], length: int) -> list[list[T]]:
    """Group workers, a multiple of `length` of them, in chains that seldom cross nodes.

    Each node forms as many whole chains as it can; the workers left over are joined node by node.
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


def start_allocator(config: RunConfig, node: str) -> Actor:
    """Start the one allocator actor on a worker's node: the head of a cluster may not take work."""
    beside = NodeAffinitySchedulingStrategy(node, soft=False)
    options = {"scheduling_strategy": beside, "enable_task_events": False}
    return Allocator.options(**options).remote(config)  # type: ignore[attr-defined]
