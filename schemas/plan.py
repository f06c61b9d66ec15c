"""What will be done, by how many workers, and what it takes."""

from schemas.config import Schema


class WorkerFacts(Schema):
    """What a worker runs on."""

    host: str
    device: str
    device_name: str
    device_memory: int
    dtype: str
    gpu_reserved: bool


class LayerRange(Schema):
    """Decoder layers start, ..., stop - 1."""

    start: int
    stop: int

    @property
    def range(self) -> range:
        return range(self.start, self.stop)


class RatioPlan(Schema):
    """Parameters that may stay at one ratio."""

    ratio: float
    targeted_parameters: int
    total_parameters: int


class MatrixKind(Schema):
    """Matrices of one type and shape."""

    path: str
    out_features: int
    in_features: int
    count: int


class Plan(Schema):
    """Layer shards, one a worker, and their cost in bytes.

    Memory is that of the worker with most layers: weights in the compute dtype and moments in
    float32 on its device, the moments' float64 sums on its host, and the largest factorisation.
    Disk is that of the run directory (moments and bases, both kept) and of all checkpoints.
    """

    shards: tuple[LayerRange, ...]
    total_parameters: int
    targeted_parameters: int
    kinds: tuple[MatrixKind, ...]
    ratios: tuple[RatioPlan, ...]
    weight_bytes: int
    moment_bytes: int
    moment_sum_bytes: int
    factorise_bytes: int
    run_disk_bytes: int
    output_disk_bytes: int
