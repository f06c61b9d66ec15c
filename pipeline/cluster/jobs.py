"""Independent jobs of one GPU each, spread over a cluster by Ray's own scheduler."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import ray

from pipeline.cluster.calls import wait_for
from pipeline.cluster.capacity import on_gpus
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig, NumericsConfig

J = TypeVar("J")
R = TypeVar("R")
_LONGEST_S = 7 * 86_400.0  # between two results; a task may take hours


def spread(
    run: Callable[[J], R],
    jobs: Sequence[tuple[str, J]],
    where: ClusterConfig,
    keep: Callable[[R], None] | None = None,
    threads: int = NumericsConfig().threads,
) -> list[R]:
    """Run every job (a description, and what `run` takes) in a process of its own, and return the
    results in order; `keep` gets each at once. Without GPUs a job has `threads` CPUs.

    A job whose process or node dies is started again, three times. Raises the job's own
    CompressorError, or WorkerError.
    """
    with ray_session(where, threads):
        gpus = 1 if on_gpus(where) else 0
        remote = ray.remote(num_gpus=gpus, num_cpus=0 if gpus else threads, max_calls=1)(run)
        calls = {remote.remote(job): what for what, job in jobs}
        return wait_for(calls, _LONGEST_S, keep)
