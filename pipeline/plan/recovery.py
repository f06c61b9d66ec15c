"""From shapes alone: the memory and the work of a recovery."""

import math
from bisect import bisect_left

from pipeline.plan.devices import GB, Rates
from pipeline.plan.footprint import PROCESS_BYTES, REFINED_BYTES, Costs
from pipeline.plan.layouts import fits, usable
from pipeline.plan.refusal import fewer_on_a_host
from pipeline.plan.work import Work
from schemas.errors import ConfigError
from schemas.request.recovery import Objective
from schemas.run.plan import SAVED_BYTES, ClusterSpec, RecoveryMemory, StageCost

_HELD_BYTES = 8  # of a trained parameter, float32: itself and its best state
_STEPPED_BYTES = 12  # of one that the next step changes: its gradient, two moments of AdamW
_HEADS: dict[Objective, int] = {"kl": 6, "tokens": 4, "hidden": 0}  # student's: 2 forward, 2 back
_LOGITS: dict[Objective, float] = {"kl": 5.5, "tokens": 4, "hidden": 0}  # float32 copies of a chunk
_POSITIONS = 128  # of a chunk


def memory(costs: Costs, workers: int, offload: bool) -> RecoveryMemory:
    """Return the bytes that a worker needs: its share of the trained parameters with all that
    belongs to them, on the host if they are to be off the device; its share of what is frozen in
    layers, and, which only refinement needs, of the base's layers and of the hidden states of both;
    and, whole, what is outside of the layers (once more for the base of a refinement, and once more
    if norms are trained), a layer that is gathered and the next one, gradients of what is trained
    in it, also in float32, and activations.
    """
    config, spec = costs.config.recovery, costs.spec
    stepped = 1.0 if config.enabled else 1 / spec.layers  # refinement trains one layer at a time
    each = (_HELD_BYTES + stepped * _STEPPED_BYTES) / workers
    trained = max(costs.trained(ratio) for ratio in costs.config.ratio) * each
    stay = max(map(costs.stays, costs.config.ratio)) if config.rank_of_updates else costs.dense
    layers = sum(layer.parameters for layer in costs.layers)
    gathered = max(
        2 * costs.item * layer.parameters + (costs.item + 4) * layer.reached
        for layer in costs.layers
    )
    refined = costs.config.refinement.enabled
    base = refined * layers * costs.item / workers
    shares = (costs.refined_windows, config.held_out)
    windows = refined * sum(math.ceil(share / workers) for share in shares)
    states = 2 * windows * config.sequence_length * spec.hidden_size
    frozen = (layers - spec.targeted + stay) * costs.item / workers
    read = sum(math.prod(tensor.shape) for tensor in spec.held(range(spec.layers)))
    outside = (1 + refined + config.norms) * (read - layers)
    tokens = config.micro_batch * config.sequence_length
    inputs = tokens * spec.hidden_size * (spec.layers if config.checkpointing else 0)
    within = tokens * costs.outputs_of_a_token * (2 if config.checkpointing else 2 * spec.layers)
    logits = _LOGITS[config.objective] * 4 * config.micro_batch * _POSITIONS * spec.vocab_size
    whole = base + gathered + (outside + states + inputs + within) * costs.item + logits
    return RecoveryMemory(
        device=int(whole + (0 if offload else trained + frozen)),
        host=int(PROCESS_BYTES + (trained + frozen if offload else 0)),
        offload=offload,
        least_workers=workers,
    )


def recovery_memory(costs: Costs, cluster: ClusterSpec) -> RecoveryMemory:
    """Return what a recovery holds where. Trained parameters leave the device only if it is too
    small for them, unless `recovery.offload` says. Raises ConfigError if the workers cannot hold
    them, with how many could.
    """
    asked = costs.config.recovery.offload
    choices = [asked] if asked is not None else [False, True]
    if not cluster.on_gpu:
        choices = [False]
    for offload in choices:
        found = memory(costs, cluster.workers, offload)
        if fits(found, cluster):
            fewer = (memory(costs, count, offload) for count in range(1, cluster.workers))
            least = next((one.least_workers for one in fewer if fits(one, cluster)), None)
            return found.model_copy(update={"least_workers": least or cluster.workers})
    raise ConfigError(
        f"recovery needs {_needs(found, cluster)} of each of {cluster.workers} workers; "
        f"{_advice(costs, cluster, choices)}, or compress without --recover and --refine"
    )


def _needs(found: RecoveryMemory, cluster: ClusterSpec) -> str:
    if not cluster.on_gpu:
        have = cluster.device_memory / GB
        return f"about {(found.device + found.host) / GB:,.1f} GB (there are {have:,.1f})"
    device, host = usable(cluster) / GB, cluster.host_memory / GB
    return (
        f"about {found.device / GB:,.1f} GB of device memory (there are {device:,.1f}) and "
        f"{found.host / GB:,.1f} GB of host memory (there are {host:,.1f})"
    )


def _advice(costs: Costs, cluster: ClusterSpec, choices: list[bool]) -> str:
    """Say how many workers could hold the recovery: on a CPU, whose workers share one memory, the
    most that can; else the least number of workers like these.
    """

    def hold(workers: int, cluster: ClusterSpec = cluster) -> bool:
        return any(fits(memory(costs, workers, offload), cluster) for offload in choices)

    lower = "set recovery.sequence_length, recovery.micro_batch or refinement.windows lower"
    if not cluster.on_gpu:
        fewer = fewer_on_a_host(costs.config, cluster)
        can = (one.flags for one in fewer if hold(one.cluster.workers, one.cluster))
        return next((f"use {flags}" for flags in can), lower)
    more = range(cluster.workers + 1, 2**20)
    at = bisect_left(more, True, key=hold)
    return f"{more[at]} workers could hold it" if at < len(more) else lower


def recovery(
    costs: Costs, cluster: ClusterSpec, rates: Rates | None, held: RecoveryMemory | None
) -> tuple[StageCost, ...]:
    """Teach and train the factors of every ratio, of which a worker holds `held`, if at all.

    The base takes 2 operations per parameter and token, once for all ratios. Recovery takes 2
    forward, 4 backward of the student (its input, its factors; 2 if these are frozen, beside
    updates that cost little), and its forward once more if activations are not kept. Refinement
    takes 6 of the student for every pass, and 2 of both to go on. Workers without a window of a
    step compute one, too. Operations of what is not targeted are not counted. Every micro-batch
    gathers all of all layers, and to go on from a refined layer also that of the base, at the rate
    of the link to the host, where a worker's own share is, too, if it is not on the device: links
    between GPUs are faster. Every worker reads all factors, what is not cut, and to refine the
    base.
    """
    config = costs.config.recovery
    if held is None:
        return ()
    passes = (8 if config.checkpointing else 6) - (2 if config.rank_of_updates else 0)
    there, taught = costs.trained_windows, costs.taught_tokens
    steps = config.steps(there) * config.enabled
    each = math.ceil(config.windows_in_step(there) / cluster.workers)
    tokens = steps * each * cluster.workers * config.sequence_length
    reached = sum(layer.reached for layer in costs.layers)
    whole = sum(layer.parameters for layer in costs.layers)
    kept = sum(map(costs.stays, costs.config.ratio)) / costs.spec.targeted
    times = len(costs.config.ratio)
    students = times * (whole - costs.spec.targeted) + sum(map(costs.stays, costs.config.ratio))
    heads = _HEADS[config.objective] * costs.ends * times
    flops = tokens * (reached * passes * kept + heads)
    refined, refinement = costs.refined_tokens, costs.config.refinement
    shared = refinement.batch / math.ceil(refinement.batch / cluster.workers)
    alone = 6 * kept * cluster.workers / shared
    flops += refined * reached * (alone + 2 * (times + kept) / refinement.passes)
    rounds = steps * math.ceil(each / config.micro_batch)
    turns = refined / config.sequence_length / shared
    refines = refinement.enabled
    read = sum(map(costs.output, costs.config.ratio)) + costs.base_bytes * refines * times
    states = SAVED_BYTES * config.evaluations * config.enabled + REFINED_BYTES * refines
    gathered = students * (rounds * (3 if config.checkpointing else 2) + turns * 2)
    gathered += (students + times * whole) * turns / refinement.passes
    teach = Work(
        "teach",
        cluster.workers,
        cluster.workers,
        cluster.nodes,
        compute=2 * taught * reached,
        read=costs.base_bytes,
        written=costs.states(taught),
        hidden=(cluster.workers - 1) * costs.states(taught),
    )
    train = Work(
        "recover",
        cluster.workers,
        cluster.workers,
        cluster.nodes,
        compute=flops,
        read=read * cluster.workers + costs.states(tokens) * times * (taught > 0),
        written=states * sum(costs.trained(ratio) for ratio in costs.config.ratio),
        link=gathered * costs.item * (cluster.workers - (not held.offload)),
    )
    return tuple(work.cost(rates) for work in ([teach] if taught else []) + [train])
