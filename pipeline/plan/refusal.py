"""The error when nothing fits: the figures, and every single change that would help.

A change is tried before it is named, so it works if it is followed. More GPUs are never named:
waves already reduce a worker's load to one layer at a time, and no GPU holds less than that.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.plan.devices import GB
from pipeline.plan.footprint import COMPUTE_BYTES, Costs
from pipeline.plan.layouts import USABLE, cut, fits, usable
from schemas.errors import ConfigError
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.methods import TRUNCATIONS, Allocation, Truncation
from schemas.run.plan import ClusterSpec, WorkerMemory


class _Change(NamedTuple):
    """Flags, and the request and the machines with them."""

    flags: str
    config: RunConfig
    cluster: ClusterSpec


def refusal(config: RunConfig, spec: ModelSpec, cluster: ClusterSpec) -> ConfigError:
    """Return the error for a run that does not fit even with one layer per worker at a time."""
    memory = _least(config, spec, cluster)
    tried = (
        next((change.flags for change in changes if _feasible(change, spec)), None)
        for changes in _changes(config, cluster)
    )
    remedies = [flags for flags in tried if flags]
    remedies.append(_more_memory(memory, cluster))
    what = "By the flags of `svdllm plan`, what" if cluster.on_gpu else "What"
    return ConfigError(f"{_figure(memory, cluster)}. {what} would do: {', or '.join(remedies)}")


def _least(config: RunConfig, spec: ModelSpec, cluster: ClusterSpec) -> WorkerMemory:
    """Return the least memory that a worker needs: one-layer shards, one of them at a time."""
    return Costs(config, spec, cluster.dtype).memory(cut(spec.layers, spec.layers), chain=1)


def _feasible(change: _Change, spec: ModelSpec) -> bool:
    return fits(_least(change.config, spec, change.cluster), change.cluster)


def _changes(config: RunConfig, cluster: ClusterSpec) -> Iterator[Iterator[_Change]]:
    """Yield groups of changes, each from the smallest up; a group's first feasible one is named."""
    yield _shorter(config, cluster, "gradient_length", "--gradient-length ")
    yield _shorter(config, cluster, "sequence_length", "--sequence-length ")
    yield _shorter(config, cluster, "micro_batch", "--set calibration.micro_batch=")
    if COMPUTE_BYTES[cluster.dtype] > COMPUTE_BYTES["bfloat16"]:
        narrow = cluster.model_copy(update={"dtype": "bfloat16"})
        yield iter([_Change("--dtype bfloat16", config, narrow)])
    if TRUNCATIONS[config.truncation].full_gram:
        ours = _by(config, "fisher", "loss-aware")
        yield iter([_Change("--method two-sided", ours, cluster)])
    if config.prunes and config.lowers_ranks:
        ranks = _by(config, config.truncation, "loss-aware-ranks")
        yield iter([_Change("--allocation loss-aware-ranks", ranks, cluster)])
    if config.needs_gradients:
        light = _by(config, "input-only", "uniform")
        flags = "--truncation input-only --allocation uniform"
        yield iter([_Change(flags, light, cluster)])
    yield fewer_on_a_host(config, cluster)


def _by(config: RunConfig, truncation: Truncation, allocation: Allocation) -> RunConfig:
    method = config.allocation.model_copy(update={"method": allocation})
    return config.model_copy(update={"truncation": truncation, "allocation": method})


def _shorter(config: RunConfig, cluster: ClusterSpec, field: str, flag: str) -> Iterator[_Change]:
    """Yield a calibration setting halved again and again."""
    value = getattr(config.calibration, field) // 2
    while value >= (1 if field == "micro_batch" else 2):
        text = config.calibration.model_copy(update={field: value})
        yield _Change(f"{flag}{value}", config.model_copy(update={"calibration": text}), cluster)
        value //= 2


def fewer_on_a_host(config: RunConfig, cluster: ClusterSpec) -> Iterator[_Change]:
    """Yield ever fewer workers sharing the memory of a host."""
    if cluster.assumed:  # memory is per GPU: fewer GPUs on a host would not get more
        return
    for count in range(cluster.per_node - 1, 0, -1):
        memory = cluster.host_memory * cluster.per_node // count
        update = {"host_memory": memory, "workers": count * cluster.nodes}
        if not cluster.on_gpu:
            update["device_memory"] = memory
        flags = f"--gpus-per-node {count}" if cluster.on_gpu else f"--workers {update['workers']}"
        yield _Change(flags, config, cluster.model_copy(update=update))


def _more_memory(memory: WorkerMemory, cluster: ClusterSpec) -> str:
    """Say how much memory would be enough without any other change."""
    if not cluster.on_gpu:
        enough = _gigabytes((memory.device + memory.host) * cluster.per_node)
        return f"{enough} of memory on {'the host' if cluster.nodes == 1 else 'each node'}"
    flags = []
    if memory.device > usable(cluster):
        flags.append(f"--gpu-memory {_gigabytes(memory.device / USABLE)}")
    if memory.host > cluster.host_memory:
        flags.append(f"--host-memory {_gigabytes(memory.host * cluster.per_node)}")
    return " ".join(flags)


def _gigabytes(size: float) -> str:
    return f"{int(size // GB) + 1}GB"


def _figure(memory: WorkerMemory, cluster: ClusterSpec) -> str:
    takes = "even with one layer at a time a worker takes"
    if not cluster.on_gpu:
        total = memory.device + memory.host
        return f"{takes} {total:,} bytes of host memory, and has {cluster.host_memory:,}"
    if memory.device <= usable(cluster):
        return f"{takes} {memory.host:,} bytes of host memory, and has {cluster.host_memory:,}"
    moments = max(memory.forward_moments, memory.backward_moments)
    return (
        f"{takes} {memory.device:,} bytes of GPU memory (weights {memory.weights:,}; with them "
        f"moments {moments:,} and activations {memory.activations:,}, then {memory.factorise:,} to "
        f"factorise the largest matrix), and {usable(cluster):,} of {cluster.device_memory:,} can "
        "be used"
    )
