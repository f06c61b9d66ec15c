"""From shapes alone: which layers of each model a worker of a streamed evaluation holds at once."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.plan.footprint import PROCESS_BYTES
from schemas.errors import ConfigError
from schemas.model.dtypes import ITEM_BYTES
from schemas.run.plan import ClusterSpec, LayerRange
from workers.checkpoint.source import Source

Part = tuple[LayerRange, ...]  # a shard: layers of each model

_WEIGHT_SHARE = 0.8  # of a worker's memory; the rest is for activations and logits


class EvaluationPlan(NamedTuple):
    """Shards in waves; those of one wave run at once. Bytes are for the largest worker."""

    waves: list[list[Part]]
    weight_bytes: int
    host_bytes: int


def plan_evaluation(
    sources: Sequence[Source], cluster: ClusterSpec, shard_layers: int | None, ran: int = 0
) -> EvaluationPlan:
    """Plan as few shards as fit, at least one per worker. Raises ConfigError if none fit.

    The layers of the first `ran` models need not run: the last shard has what follows them.
    """
    on_cpu = cluster.device == "cpu"
    room = int((cluster.device_memory - on_cpu * PROCESS_BYTES) * _WEIGHT_SHARE)
    most = min(source.spec.layers for source in sources)
    deepest = max(source.spec.layers for source in sources)
    fewest = max(cluster.workers, math.ceil(deepest / (shard_layers or deepest)))
    for count in range(min(fewest, most), most + 1):
        parts = _cut(sources, count, ran)
        needed = max(_weight_bytes(sources, part) for part in parts)
        if needed <= room:
            break
    else:
        raise ConfigError(
            f"one layer of each model takes {needed:,} bytes of weights with the embedding or the "
            f"head, but a worker has room for {max(room, 0):,}; use --dtype bfloat16, or fewer "
            "--workers on each host"
        )
    largest = max(tensor.nbytes for source in sources for tensor in source.spec.tensors)
    return EvaluationPlan(
        waves=[parts[i : i + cluster.workers] for i in range(0, count, cluster.workers)],
        weight_bytes=needed,
        host_bytes=PROCESS_BYTES + largest + on_cpu * needed,
    )


def boundary_bytes(sources: Sequence[Source], tokens: int) -> int:
    """Return the disk bytes of `tokens` tokens between two waves, with those of the wave before."""
    hidden = sum(source.spec.hidden_size * ITEM_BYTES[source.dtype] for source in sources)
    return 2 * tokens * (hidden + ITEM_BYTES["I64"])


def _cut(sources: Sequence[Source], count: int, ran: int) -> list[Part]:
    """Cut every model into contiguous parts of work as equal as possible, but the first `ran`."""
    tails = [[(0, 0)] * (count - 1) + [(s.spec.layers, s.spec.layers)] for s in sources[:ran]]
    whole = [pairwise(_bounds(source, count)) for source in sources[ran:]]
    return [
        tuple(LayerRange(start=a, stop=b) for a, b in part)
        for part in zip(*tails, *whole, strict=True)
    ]


def _bounds(source: Source, count: int) -> list[int]:
    """Return where each of `count` parts begins, and the end; the head is weighed in layers."""
    spec = source.spec
    without_last, whole = (_parameters(source, range(n)) for n in (spec.layers - 1, spec.layers))
    embedding = spec.hidden_size * spec.vocab_size
    layer = max(1, without_last - embedding) / max(1, spec.layers - 1)
    total = (whole - embedding) / layer
    found = [0]
    for part in range(1, count):  # with a layer for each, however light the last one is
        latest = spec.layers - count + part
        found.append(max(found[-1] + 1, min(round(total * part / count), latest)))
    return [*found, spec.layers]


def _weight_bytes(sources: Sequence[Source], part: Part) -> int:
    """Return the bytes of a shard's weights, in the compute dtypes."""
    models = zip(sources, part, strict=True)
    return sum(_parameters(one, layers.range) * ITEM_BYTES[one.dtype] for one, layers in models)


def _parameters(source: Source, layers: range) -> int:
    return sum(math.prod(tensor.shape) for tensor in source.spec.held(layers))
