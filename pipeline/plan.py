"""From shapes alone: the layer shards, and what they take of memory and disk."""

import math
import os
import shutil
from collections import Counter
from itertools import pairwise

from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.model import MatrixSpec, ModelSpec, whole
from schemas.moments import taps
from schemas.plan import LayerRange, MatrixKind, Plan, RatioPlan
from workers.checkpoint import inspect, resolve

_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_CPU_WORKERS = 8
_PROCESS_BYTES = 600 * 1024**2  # python, torch and ray themselves


def make_plan(config: RunConfig, spec: ModelSpec, workers: int, dtype: str = "float32") -> Plan:
    """Contiguous layer shards whose sizes differ by at most one, and their cost."""
    bounds = [spec.layers * i // workers for i in range(workers + 1)]
    shards = [LayerRange(start=a, stop=b) for a, b in pairwise(bounds)]
    total = sum(math.prod(tensor.shape) for tensor in spec.tensors)
    base_bytes = sum(tensor.nbytes for tensor in spec.tensors)
    largest = max(range(workers), key=lambda i: shards[i].stop - shards[i].start)
    mine = [m for m in spec.matrices if m.layer in shards[largest].range]
    found = taps(spec.matrices, config.truncation, config.needs_gradients)
    moments = [tap for tap in found if tap.moment]
    mine_moments = [tap for tap in moments if tap.layer in shards[largest].range]
    ends = 2 * spec.vocab_size * spec.hidden_size
    return Plan(
        shards=tuple(shards),
        chain=workers,
        replicas=1,
        total_parameters=total,
        targeted_parameters=spec.targeted,
        kinds=_kinds(spec),
        ratios=tuple(_ratio_plan(spec, total, ratio) for ratio in config.ratio),
        weight_bytes=(sum(m.size for m in mine) + ends) * _COMPUTE_BYTES[dtype],
        moment_bytes=sum(tap.size**2 * 4 for tap in mine_moments),
        moment_sum_bytes=sum(tap.size**2 * 8 for tap in mine_moments),
        factorise_bytes=max(_factorise_bytes(config, matrix) for matrix in spec.matrices),
        run_disk_bytes=sum(tap.size**2 * 4 for tap in moments)
        + sum(_basis_size(config, matrix) * 4 for matrix in spec.matrices),
        output_disk_bytes=sum(
            int(base_bytes * (1 - ratio * spec.targeted / total)) for ratio in config.ratio
        ),
    )


def device_memory(plan: Plan) -> int:
    """Device memory of the largest worker, in bytes."""
    return max(plan.weight_bytes + plan.moment_bytes, plan.factorise_bytes)


def worker_memory(plan: Plan, on_gpu: bool) -> int:
    """Host memory of the largest worker, in bytes; on the CPU its device is the host."""
    return _PROCESS_BYTES + plan.moment_sum_bytes + (0 if on_gpu else device_memory(plan))


def require_disk(plan: Plan, config: RunConfig, committed: int) -> None:
    """Raises ConfigError where run directory and checkpoints do not fit on their disk.

    Factors are kept beside the checkpoints they go into; `committed` bytes are there already.
    """
    for folder, size in (
        (config.run_folder, plan.run_disk_bytes + 2 * plan.output_disk_bytes - committed),
        (config.output, plan.output_disk_bytes),
    ):
        path = folder.absolute()
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(place).free
        if size > free:
            raise ConfigError(
                f"{folder}: the run needs about {size:,} bytes there, {free:,} are free; "
                "free some, or name another --run-dir or --output"
            )


def plan_checkpoint(config: RunConfig) -> Plan:
    """The plan of a run before anything is started; without --workers, one a core of this host."""
    spec = inspect(resolve(config.model, config.revision))
    workers = config.cluster.workers or min(len(os.sched_getaffinity(0)), MAX_CPU_WORKERS)
    dtype = "float32" if config.numerics.dtype == "auto" else config.numerics.dtype
    return make_plan(config, spec, min(workers, spec.layers), dtype)


def _kinds(spec: ModelSpec) -> tuple[MatrixKind, ...]:
    counts = Counter((m.path, m.out_features, m.in_features) for m in spec.matrices)
    return tuple(
        MatrixKind(path=path, out_features=rows, in_features=columns, count=count)
        for (path, rows, columns), count in counts.items()
    )


def _ratio_plan(spec: ModelSpec, total: int, ratio: float) -> RatioPlan:
    stays = whole((1 - ratio) * spec.targeted)
    return RatioPlan(
        ratio=ratio, targeted_parameters=stays, total_parameters=total - spec.targeted + stays
    )


def _basis_size(config: RunConfig, matrix: MatrixSpec) -> int:
    if config.truncation in ("svd-llm", "svd-llm-v2"):
        return matrix.small * (matrix.out_features + matrix.in_features)
    return 2 * matrix.small**2


def _factorise_bytes(config: RunConfig, matrix: MatrixSpec) -> int:
    """Float64: W, and about six square matrices of the side that is factorised."""
    full = config.truncation in ("svd-llm", "svd-llm-v2")
    side = matrix.in_features if full else matrix.small
    return 8 * (2 * matrix.size + 6 * side**2)
