"""From shapes alone: the memory and the work of a recovery."""

import math

from pipeline.plan.devices import Rates
from pipeline.plan.footprint import PROCESS_BYTES, Costs
from pipeline.plan.layouts import USABLE
from pipeline.plan.work import Work
from schemas.errors import ConfigError
from schemas.run.plan import ClusterSpec, StageCost

_TRAINED_BYTES = 20  # float32: a parameter, its gradient, two moments of AdamW, the best state
_LOGITS = 4  # float32 copies of a chunk of logits
_POSITIONS = 128  # of a chunk
_GB = 10**9


def memory(costs: Costs, workers: int) -> int:
    """Return the bytes that a worker needs: its share of the layers of base and student, what is
    outside of them, the layers that are gathered now, and activations.
    """
    config, spec = costs.config.recovery, costs.spec
    trained = max(map(costs.stays, costs.config.ratio))
    layers = sum(layer.parameters for layer in costs.layers)
    largest = max(layer.parameters for layer in costs.layers)
    frozen = 2 * layers - spec.targeted
    outside = 2 * (costs.parameters - layers)
    tokens = config.micro_batch * config.sequence_length
    inputs = tokens * spec.hidden_size * (spec.layers if config.checkpointing else 0)
    within = tokens * costs.outputs_of_a_token * (2 if config.checkpointing else 2 * spec.layers)
    logits = _LOGITS * 4 * config.micro_batch * _POSITIONS * spec.vocab_size
    sharded = (trained * _TRAINED_BYTES + frozen * costs.item) / workers
    whole = (outside + 3 * largest + inputs + within) * costs.item
    return int(sharded + whole + logits)


def require_recovery(costs: Costs, cluster: ClusterSpec) -> None:
    """Raises ConfigError if the workers cannot hold base and student, with how many could."""
    room = cluster.device_memory * USABLE if cluster.on_gpu else cluster.device_memory
    room -= 0 if cluster.on_gpu else PROCESS_BYTES
    needed = memory(costs, cluster.workers)
    if needed <= room:
        return
    least = memory(costs, 10**9)  # what more workers do not share
    shared = (needed - least) * cluster.workers
    advice = (
        f"{math.ceil(shared / (room - least))} workers could hold it"
        if room > least
        else "set recovery.sequence_length or recovery.micro_batch lower"
    )
    raise ConfigError(
        f"recovery needs about {needed / _GB:,.1f} GB of each of {cluster.workers} workers, which "
        f"have {room / _GB:,.1f}; {advice}, or compress without --recover"
    )


def recovery(costs: Costs, cluster: ClusterSpec, rates: Rates | None) -> tuple[StageCost, ...]:
    """Train the factors of every ratio.

    Recovery takes 2 operations per parameter and token forward, of base and student, 4 backward of
    the student (its input, its factors), and its forward once more if activations are not kept.
    Refinement takes 6 of the student for every pass, and 2 of both to go on. Every micro-batch
    gathers all layers, at the rate of the link to the host: links between GPUs are faster.
    """
    config = costs.config.recovery
    if not costs.config.trains:
        return ()
    passes = 8 if config.checkpointing else 6
    tokens = costs.recovered_tokens
    reached = sum(layer.reached for layer in costs.layers)
    kept = sum(map(costs.stays, costs.config.ratio)) / costs.spec.targeted
    times = len(costs.config.ratio)
    heads = 6 * costs.ends * times  # of both forward, of the student backward
    flops = tokens * (reached * (2 * times + passes * kept) + heads)
    refined, turns = costs.refined_tokens, costs.config.refinement.passes
    flops += refined * reached * (6 * kept + 2 * (times + kept) / turns)
    rounds = tokens / (config.micro_batch * config.sequence_length) / cluster.workers
    gathered = (2 * times + (3 if config.checkpointing else 2) * kept) * reached * costs.item
    work = Work(
        "recover",
        cluster.workers,
        cluster.workers,
        cluster.nodes,
        compute=flops,
        read=costs.base_bytes * cluster.workers * times,
        written=_TRAINED_BYTES * kept * costs.spec.targeted * config.evaluations,
        link=rounds * gathered * (cluster.workers - 1),
    )
    return (work.cost(rates),)
