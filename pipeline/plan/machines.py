"""The machines of a plan: GPUs that flags describe, or the CPU of this host."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.plan.devices import row
from schemas.errors import ConfigError
from schemas.model.dtypes import computed_in
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.groups import DType
from schemas.request.sizes import parse_size
from schemas.run.plan import ClusterSpec
from workers.process.memory import available_bytes

MAX_CPU_WORKERS = 8
_GPUS_PER_NODE = 8
_HOST_BYTES = 128 * 10**9  # for each GPU; p4d.24xlarge has 144, a2-ultragpu-8g 170, p5.48xlarge 256


class Machines(NamedTuple):
    """GPUs as flags describe them; memory reads like "80GB", host memory is for a whole node.

    A host without a given memory is assumed to have 128 GB for each GPU.
    """

    gpus: int | None = None
    gpus_per_node: int | None = None
    gpu_memory: str | None = None
    host_memory: str | None = None
    gpu_type: str | None = None


def find(config: RunConfig, spec: ModelSpec, machines: Machines) -> ClusterSpec:
    """Return the described GPUs; if none are described, workers on this host's CPU: those asked
    for, or one per core up to 8. Raises ConfigError.
    """
    if machines.gpus is not None:
        return _described(config, spec, machines.gpus, machines)
    if machines != Machines():
        raise ConfigError(
            "--gpus-per-node, --gpu-memory, --gpu-type and --host-memory describe machines with "
            "GPUs; add --gpus N, or leave them out to plan for the CPU of this one"
        )
    cores = len(os.sched_getaffinity(0)) // config.numerics.threads
    workers = config.cluster.workers or max(1, min(cores, MAX_CPU_WORKERS))
    return on_cpu(config.numerics.dtype, workers, available_bytes())


def on_cpu(dtype: DType, workers: int, memory: int, nodes: int = 1) -> ClusterSpec:
    """Describe `workers` that share `memory` bytes of their hosts, `nodes` of them."""
    return ClusterSpec(
        workers=workers,
        device="cpu",
        device_name="cpu",
        device_memory=memory // workers,
        host_memory=memory // workers,
        dtype="float32" if dtype == "auto" else dtype,
        nodes=nodes,
        per_node=-(-workers // nodes),
    )


def share(nodes: Sequence[tuple[int, int]], workers: int) -> int:
    """Return the most bytes of host memory that each of some workers can have on its node; 0 if
    there is no room for so many.

    Each of `nodes` has room for so many workers, and has so many bytes.
    """
    found = {memory // count for room, memory in nodes for count in range(1, room + 1)}

    def enough(most: int) -> bool:
        return sum(min(room, memory // most) for room, memory in nodes) >= workers

    return max(filter(enough, found - {0}), default=0)


def _described(config: RunConfig, spec: ModelSpec, gpus: int, machines: Machines) -> ClusterSpec:
    peaks = row(machines.gpu_type or "")
    if machines.gpu_memory is None and machines.gpu_type is None:
        raise ConfigError(
            "a description of GPUs needs their memory; add --gpu-memory, as 80GB, or --gpu-type"
        )
    if machines.gpu_memory is None and peaks is None:
        raise ConfigError(
            f"the memory of GPU type {machines.gpu_type!r} is not known; add --gpu-memory, as 80GB"
        )
    per_node = min(machines.gpus_per_node or _GPUS_PER_NODE, gpus)
    nodes, workers = -(-gpus // per_node), min(gpus, config.cluster.workers or gpus)
    sizes = [min(per_node, gpus - start) for start in range(0, gpus, per_node)]
    memory = peaks.memory if peaks else 0
    if machines.gpu_memory is not None:
        memory = _size(machines.gpu_memory, "--gpu-memory")
    host_memory = _HOST_BYTES
    if stated := machines.host_memory is not None:
        each = _size(machines.host_memory, "--host-memory")
        host_memory = share([(size, each) for size in sizes], workers)
    auto = config.numerics.dtype == "auto"
    return ClusterSpec(
        workers=workers,
        device="cuda",
        device_name=machines.gpu_type or "GPU",
        device_memory=memory,
        host_memory=host_memory,
        dtype=computed_in(spec.dtype) if auto else config.numerics.dtype,
        nodes=nodes,
        per_node=per_node if workers == gpus else -(-workers // nodes),
        assumed=()
        if stated
        else (f"{host_memory // 10**9} GB of host memory a GPU (--host-memory)",),
    )


def _size(text: str, flag: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}") from error
