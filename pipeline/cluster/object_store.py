"""The size, in bytes, of the object store of a Ray that the program starts itself."""

import shutil

from pipeline.plan.machines import MAX_CPU_WORKERS
from schemas.model.spec import DecoderSpec
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from workers.process.memory import available_bytes

_ELEMENT = 4  # of a float32
_LEAST = 512 * 1024**2
_SHARE = 4  # the store may use at most one part in this of the available memory
_SHARED_MEMORY = "/dev/shm"  # holds the store; its unused part takes no memory


def run_bytes(config: RunConfig, spec: DecoderSpec) -> int:
    """Return the bytes that the calibration streams and the comparison with the base need."""
    text, token = config.calibration, _ELEMENT * spec.hidden_size
    compared = 2 * config.evaluation.sequence_length
    return stream_bytes(
        config.cluster,
        token * max(text.micro_batch * text.sequence_length, compared),
        token * text.micro_batch * text.gradient_length,
    )


def stream_bytes(cluster: ClusterConfig, moved: int, kept: int = 0) -> int:
    """Return the bytes for micro-batches of `moved` bytes, or of `kept` bytes that come back.

    A chain of n shards has up to 2n + 1 of them under way, so 3 per worker with any number of
    replicas, each as the input and the output of a shard. Every shard keeps what is to come back.
    """
    workers = cluster.workers or MAX_CPU_WORKERS
    return 3 * workers * max(2 * moved, (workers + 1) * kept)


def within_memory(needed: int) -> int:
    """Return `needed`, limited to the room there is, but at least what Ray needs to start."""
    room = min(available_bytes() // _SHARE, shutil.disk_usage(_SHARED_MEMORY).free)
    return max(_LEAST, min(needed, room))
