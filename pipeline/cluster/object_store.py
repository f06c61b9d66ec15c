"""How large the object store of a Ray is that the program starts for itself, in bytes."""

import shutil

from pipeline.plan.machines import MAX_CPU_WORKERS
from schemas.model.spec import DecoderSpec
from schemas.request.config import ClusterConfig, RunConfig
from workers.process.memory import available_bytes

_ELEMENT = 4  # of a float32
_LEAST = 512 * 1024**2
_SHARE = 4  # what is in use may take one part in this of the memory that is available
_SHARED_MEMORY = "/dev/shm"  # where it is; what is not in use takes none of it


def run_bytes(config: RunConfig, spec: DecoderSpec) -> int:
    """What the streams of a calibration need, and a comparison of the result with its base."""
    text, token = config.calibration, _ELEMENT * spec.hidden_size
    compared = 2 * config.evaluation.sequence_length
    return stream_bytes(
        config.cluster,
        token * max(text.micro_batch * text.sequence_length, compared),
        token * text.micro_batch * text.gradient_length,
    )


def stream_bytes(cluster: ClusterConfig, moved: int, kept: int = 0) -> int:
    """What micro-batches of `moved` bytes need, or those of `kept` bytes that come back.

    A chain of n shards has up to 2n + 1 of them under way, so with any replicas 3 a worker; each as
    what enters a shard and what leaves it. What comes back was kept by every shard meanwhile.
    """
    workers = cluster.workers or MAX_CPU_WORKERS
    return 3 * workers * max(2 * moved, (workers + 1) * kept)


def within_memory(needed: int) -> int:
    """As much of it as there is room for, but never so little that Ray would not start."""
    room = min(available_bytes() // _SHARE, shutil.disk_usage(_SHARED_MEMORY).free)
    return max(_LEAST, min(needed, room))
