"""The ways to spread a model's layers over workers so that they fit in memory."""

from collections.abc import Iterator
from itertools import pairwise

from pipeline.plan.footprint import Costs
from schemas.errors import ClusterError
from schemas.run.plan import ClusterSpec, LayerRange, Layout, RecoveryMemory, WorkerMemory

USABLE = 0.9  # of a GPU's memory: the CUDA context, its libraries and fragmentation take the rest


def layouts(costs: Costs, cluster: ClusterSpec) -> Iterator[Layout]:
    """Yield every chain that fits, in its fewest waves, with each allowed number of replicas."""
    config = costs.config
    cap, fixed = config.calibration.segments, config.cluster.replicas
    if fixed is not None and fixed > min(cap, cluster.workers):
        raise ClusterError(
            f"cluster.replicas is {fixed}, of {cluster.workers} workers and {cap} segments; each "
            f"takes one of both: ask for {min(cap, cluster.workers)} at most"
        )
    for chain in range(1, min(cluster.workers, costs.spec.layers) + 1):
        room = min(cap, cluster.workers // chain)
        wanted = range(1, (room if cluster.on_gpu else 1) + 1)
        if fixed is not None:
            wanted = range(fixed, min(fixed, room) + 1)
        if not wanted:
            continue
        if (found := _fewest_waves(costs, cluster, chain)) is not None:
            shards, memory = found
            for replicas in wanted:
                nodes = -(-chain * replicas * cluster.nodes // cluster.workers)
                yield Layout(
                    shards=shards, chain=chain, replicas=replicas, nodes=nodes, memory=memory
                )


def cut(layers: int, count: int) -> tuple[LayerRange, ...]:
    """Return `count` contiguous ranges whose sizes differ by at most one."""
    bounds = [layers * i // count for i in range(count + 1)]
    return tuple(LayerRange(start=a, stop=b) for a, b in pairwise(bounds))


def usable(cluster: ClusterSpec) -> int:
    """Device memory that a plan counts on, in bytes."""
    return int(cluster.device_memory * (USABLE if cluster.on_gpu else 1))


def fits(memory: WorkerMemory | RecoveryMemory, cluster: ClusterSpec) -> bool:
    """Whether a worker has room; on the CPU, device and host share one memory."""
    if cluster.on_gpu:
        return memory.device <= usable(cluster) and memory.host <= cluster.host_memory
    return memory.device + memory.host <= cluster.host_memory


def _fewest_waves(
    costs: Costs, cluster: ClusterSpec, chain: int
) -> tuple[tuple[LayerRange, ...], WorkerMemory] | None:
    layers = costs.spec.layers
    least = -(-layers // (costs.config.cluster.shard_layers or layers))
    for waves in range(-(-least // chain), -(-layers // chain) + 1):
        shards = cut(layers, min(layers, chain * waves))
        memory = costs.memory(shards, chain)
        if fits(memory, cluster):
            return shards, memory
    return None
