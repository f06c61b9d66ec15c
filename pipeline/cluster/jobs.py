"""Independent jobs of one GPU each, spread over a cluster by Ray's own scheduler."""

from collections.abc import Callable, Sequence

import ray

from pipeline.cluster.calls import wait_for
from pipeline.cluster.capacity import on_gpus
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.result.tasks import TaskResult
from workers.evaluation.harness import Job, run_job

_THREADS = NumericsConfig().threads  # a job has as many as a worker of a compression
_LONGEST_S = 7 * 86_400.0  # between two results; a task may take hours


def spread(jobs: Sequence[Job], where: ClusterConfig, keep: Callable[[TaskResult], None]) -> None:
    """Run every job of one task in a process of its own; `keep` gets each result at once.

    A job whose process or node dies is started again, three times. Raises the job's own
    CompressorError, or WorkerError.
    """
    with ray_session(where, _THREADS):
        gpus = 1 if on_gpus(where) else 0
        remote = ray.remote(num_gpus=gpus, num_cpus=0 if gpus else _THREADS)(_only_result)
        calls = {remote.remote(job): f"{job.tasks[0]}, {job.name}" for job in jobs}
        wait_for(calls, _LONGEST_S, keep)


def _only_result(job: Job) -> TaskResult:
    [result] = run_job(job)
    return result
