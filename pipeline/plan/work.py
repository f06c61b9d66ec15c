"""Operations, bytes and seconds of every stage of a run.

Operations are counted as in flops.py. Attention's own products are left out: at 2,048 tokens, 2 %
of a 70B's.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from pipeline.plan.devices import HOST_THREAD, NETWORK, OBJECTS, Rates
from pipeline.plan.flops import basis_flops, factor_flops, order_flops, prune_flops, rank_at, summed
from pipeline.plan.footprint import SUM_BYTES, Costs, LayerCost
from schemas.run.moments import Pass
from schemas.run.plan import ClusterSpec, Layout, Resource, StageCost
from schemas.run.stages import StageName
from workers.checkpoint.stored import UNASKED
from workers.checkpoint.verify import FULL_LOAD_BYTES
from workers.storage.files import HASH_THREADS

_BISECTIONS = 100  # of the multiplier, each over every rank of every matrix


class Work(NamedTuple):
    """What a stage takes of each resource, summed over all workers.

    `compute` counts operations in the compute dtype; `host` bytes hashed or averaged by worker
    threads; `link` bytes between devices and hosts; `hidden` bytes of hidden states between
    workers. `busy` workers share the operations, `threads` the bytes of host and link; reads and
    writes go through the networks of `nodes`.
    """

    name: StageName
    busy: float
    threads: float
    nodes: int
    compute: float = 0
    float64: float = 0
    eigen: float = 0
    svd: float = 0
    host: float = 0
    link: float = 0
    read: float = 0
    written: float = 0
    hidden: float = 0

    def cost(self, rates: Rates | None) -> StageCost:
        return StageCost(
            name=self.name,
            flops=int(self.compute + self.float64 + self.eigen + self.svd),
            read_bytes=int(self.read),
            written_bytes=int(self.written),
            network_bytes=int(self.hidden + self.read + self.written),
            seconds=None if rates is None else self._seconds(rates),
        )

    def _seconds(self, rates: Rates) -> dict[Resource, float]:
        """Seconds by resource. Storage traffic counts as `disk`, even if the network limits it."""
        most = self.nodes * NETWORK
        found: dict[Resource, float] = {
            "compute": self.compute / self.busy / rates.compute,
            "float64": self.float64 / self.busy / rates.float64,
            "eigensolver": self.eigen / self.busy / rates.solver,
            "SVD": self.svd / self.busy / rates.solver,
            "host thread": self.host / self.threads / HOST_THREAD,
            "host link": self.link / self.threads / rates.link,
            "disk": self.read / min(rates.read, most) + self.written / min(rates.write, most),
            "network": self.hidden / self.nodes / OBJECTS,
        }
        return {resource: seconds for resource, seconds in found.items() if seconds}


def stages(costs: Costs, layout: Layout, rates: Rates | None) -> tuple[StageCost, ...]:
    """Return the cost of every stage in order; stages of an output count all ratios."""
    made = _cut(costs, layout) if costs.config.calibrates else [_adopt(costs, layout)]
    work = [_inspect(costs), *made, _write(costs, layout), _verify(costs)]
    return tuple(one.cost(rates) for one in work)


def _cut(costs: Costs, layout: Layout) -> list[Work]:
    waves = [[costs.of(shard.range) for shard in wave] for wave in layout.waves]
    work = [_load(costs, layout), _calibrate(costs, layout, waves, "forward")]
    if costs.tokens("backward"):
        work.append(_calibrate(costs, layout, waves, "backward"))
    return [*work, _factorise(costs, layout), _allocate(costs), _truncate(costs, layout)]


def evaluation(costs: Costs, cluster: ClusterSpec, rates: Rates | None) -> tuple[StageCost, ...]:
    """Evaluate base and results on a text, if there is one: all are read once more, by all workers
    of the cluster whatever the layout, with 2 operations per parameter and token through each. The
    base's last hidden states are kept; every result takes them and the base's head.
    """
    ratios, tokens = costs.config.ratio, costs.compared_tokens
    if not tokens:
        return ()
    stored = costs.base_bytes * (1 + len(ratios) * costs.ends / costs.parameters)
    stored += sum(costs.output(ratio) for ratio in ratios)
    rows = costs.states(tokens)
    work = Work(
        "evaluate",
        cluster.workers,
        cluster.workers,
        cluster.nodes,
        compute=2 * tokens * costs.parameters * stored / costs.base_bytes,
        read=stored + len(ratios) * rows,
        written=rows,
        hidden=(1 + 2 * len(ratios)) * (cluster.workers - 1) * rows,
    )
    return (work.cost(rates),)


def _inspect(costs: Costs) -> Work:
    """Count the driver's hashing of the base's files."""
    size = costs.base_bytes
    return Work("inspect", 1, HASH_THREADS, 1, host=size, read=size)


def _load(costs: Costs, layout: Layout) -> Work:
    """Every replica reads every wave; the backward sweep rereads every wave but the last."""
    waves = len(layout.waves)
    again = (waves - 1) / waves if costs.tokens("backward") else 0
    read = costs.base_bytes * layout.replicas * (1 + again)
    return Work("load", 1, 1, layout.nodes, read=read)


def _calibrate(costs: Costs, layout: Layout, waves: list[list[LayerCost]], direction: Pass) -> Work:
    """Count one stream. Forward: 2 operations per parameter and token, and the moments.

    Backward: forward, each layer again, and the gradient of its input only (weights are frozen),
    2 each; with several waves, one more forward for all but the last. Moments are products in
    the compute dtype (sums in float32), 2 operations for an element and token. After every segment
    the exact sums go from the host to the device and back; every moment is averaged, and hashed as
    it is committed. Sums of several replicas are written, then read and added, hashed both times.
    """
    backward = direction == "backward"
    total, tokens = costs.of(range(costs.spec.layers)), costs.tokens(direction)
    elements = total.backward if backward else total.forward
    before_last = sum(layer.reached for wave in waves[:-1] for layer in wave)
    passes = 3 * total.reached + before_last if backward else total.reached
    head = 2 * costs.ends if backward else 0
    boundary = costs.states(costs.tokens(direction))
    parts = min(costs.config.calibration.segments, _micro_batches(costs, direction))
    merged = SUM_BYTES * elements * layout.replicas if layout.replicas > 1 else 0
    between = (len(waves) - 1) * boundary * (2 if backward else 1)
    return Work(
        "calibrate backward" if backward else "calibrate forward",
        _busy(costs, layout, waves, direction),
        _balance(waves, lambda layer: layer.backward if backward else layer.forward)
        * layout.replicas,
        layout.nodes,
        compute=2 * tokens * (passes + head) + 2 * tokens * elements,
        host=2 * 4 * elements + 3 * merged,
        link=2 * SUM_BYTES * parts * elements,
        read=between + merged,
        written=4 * elements + between + merged,
        hidden=sum(len(wave) - 1 for wave in waves) * boundary * (2 if backward else 1),
    )


def _factorise(costs: Costs, layout: Layout) -> Work:
    """Every matrix gets a basis from its moments, and every MLP an order of its neurons, on all
    workers at once, weights still loaded.
    """
    eigen, svd, products = _basis_flops(costs)
    moments, bases = costs.moments_read, costs.kept_bases
    return Work(
        "factorise",
        layout.workers,
        layout.workers,
        layout.nodes,
        eigen=eigen,
        svd=svd,
        float64=products,
        host=moments + bases,
        read=moments,
        written=bases,
    )


@lru_cache(maxsize=1)  # the same for every layout that is compared
def _basis_flops(costs: Costs) -> tuple[float, float, float]:
    found, rooted = [], set[str]()
    for matrix in costs.factorised:
        shared = f"{matrix.layer}.{matrix.reads}"
        found.append(basis_flops(costs.config.truncation, matrix, shared in rooted))
        rooted.add(shared)
    found += [order_flops(neurons) for neurons in costs.ordered]
    return summed(found)


def _allocate(costs: Costs) -> Work:
    """One actor searches the ranks of all matrices, with float64 eigenvalues in memory, or numbers
    of neurons.
    """
    ranks = sum(matrix.small for matrix in costs.factorised)
    spectra = 8 * (ranks or sum(neurons.count for neurons in costs.ordered))
    searched = spectra * _BISECTIONS * len(costs.config.ratio)
    return Work("allocate", 1, 1, 1, host=spectra + searched, read=spectra)


@lru_cache(maxsize=1)  # the same for every layout that is compared
def _factor_flops(costs: Costs) -> float:
    ratios = costs.config.ratio
    if not costs.factorised:  # MLPs lose for all that is targeted
        more = costs.spec.targeted / max(_cuttable(costs), 1)
        kept = [max(0.0, 1 - ratio * more) for ratio in ratios]
        return sum(prune_flops(neurons, keep) for keep in kept for neurons in costs.ordered)
    return sum(
        factor_flops(matrix, rank_at(matrix, 1 - ratio, costs.config.factors == "pivoted"))
        for ratio in ratios
        for matrix in costs.factorised
    )


def _cuttable(costs: Costs) -> int:
    """Return the parameters of the matrices that can be cut, or can only lose neurons."""
    pruned = [matrix for neurons in costs.ordered for matrix in neurons.matrices]
    return sum(matrix.size for matrix in costs.factorised or pruned)


def _truncate(costs: Costs, layout: Layout) -> Work:
    """Every matrix gets factors at its rank (the uniform one is assumed) and their achieved loss,
    or every MLP loses neurons if nothing else may go.

    Bases that were not kept are computed again, each with its own root.
    """
    config, ratios = costs.config, costs.config.ratio
    flops = _factor_flops(costs)
    again = () if config.cluster.keep_bases else costs.factorised
    eigen, svd, products = summed(
        [basis_flops(config.truncation, matrix, rooted=False) for matrix in again]
    )
    read = (costs.moments_read + costs.kept_bases) * len(ratios)
    weights = int(costs.base_bytes * _cuttable(costs) / costs.parameters)
    factors = sum(costs.output(ratio) for ratio in ratios)
    return Work(
        "truncate",
        layout.workers,
        layout.workers,
        layout.nodes,
        eigen=len(ratios) * eigen,
        svd=len(ratios) * svd,
        float64=flops + len(ratios) * products,
        host=read + factors,
        read=read + weights * len(ratios),
        written=factors,
    )


def _adopt(costs: Costs, layout: Layout) -> Work:
    """The driver hashes the finished checkpoint; the workers copy its factors."""
    size = sum(costs.output(ratio) for ratio in costs.config.ratio)
    workers = layout.workers
    return Work("adopt", workers, workers, layout.nodes, host=2 * size, read=2 * size, written=size)


def _write(costs: Costs, layout: Layout) -> Work:
    """Factors and untouched tensors go into the checkpoint files, hashed when read and written."""
    size = sum(costs.output(ratio) for ratio in costs.config.ratio)
    return Work("write", 1, layout.workers, layout.nodes, host=2 * size, read=size, written=size)


def _verify(costs: Costs) -> Work:
    """One worker hashes every file. A small model is loaded in a clean process, of a larger one two
    layers and the embeddings; a very small one is also saved once more.
    """
    sizes = [costs.output(ratio) for ratio in costs.config.ratio]
    if costs.config.budget.measured:  # of the trials one is published
        sizes = sizes[:1]
    part = 2 * (costs.ends + max(layer.parameters for layer in costs.layers))
    bound = part * costs.base_bytes / costs.parameters
    loaded = sum(size if size <= FULL_LOAD_BYTES else bound for size in sizes)
    saved = sum(size for size in sizes if size <= UNASKED)
    size = sum(sizes)
    return Work("verify", 1, HASH_THREADS, 1, host=size, read=size + loaded, written=saved)


def _busy(costs: Costs, layout: Layout, waves: list[list[LayerCost]], direction: Pass) -> float:
    """Average number of busy workers: the chain fills and drains (the bubble of 1F1B) and waits
    for its largest shard; a replica does its part of the micro-batches.
    """
    count = _micro_batches(costs, direction)
    steps = -(-count // layout.replicas) + layout.chain - 1
    return _balance(waves, lambda layer: layer.reached) * count / steps


def _balance(waves: list[list[LayerCost]], cost: Callable[[LayerCost], float]) -> float:
    """Total cost over the sum of each wave's largest shard: workers of a chain that share it."""
    total = sum(cost(shard) for wave in waves for shard in wave)
    return total / sum(max(map(cost, wave)) for wave in waves) if total else 1.0


def _micro_batches(costs: Costs, direction: Pass) -> int:
    return -(-costs.windows(direction)[0] // costs.config.calibration.micro_batch)
