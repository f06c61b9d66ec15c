"""What will be done, by how many workers, and what it takes."""

from schemas.config import Schema


class WorkerFacts(Schema):
    """What a worker runs on."""

    host: str
    node: str
    device: str
    device_name: str
    device_memory: int
    dtype: str
    gpu_reserved: bool


class ClusterSpec(Schema):
    """The machines of a run, found in Ray or described by flags. Memory is in bytes, per worker.

    On the CPU a worker's device is the host, so `device_memory` and `host_memory` are the same.
    """

    workers: int
    device: str
    device_name: str
    device_memory: int
    host_memory: int
    dtype: str


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
    """Layer shards and their cost in bytes.

    The shards are in the order of the layers. `chain` of them run at once, one a worker, on
    `replicas` copies of the chain; the next `chain` shards are the next wave.

    Memory is that of the worker with most layers: weights in the compute dtype and moments in
    float32 on its device, the moments' float64 sums on its host, and the largest factorisation.
    Disk is that of the run directory (moments and bases, both kept) and of all checkpoints.
    """

    cluster: ClusterSpec
    shards: tuple[LayerRange, ...]
    chain: int
    replicas: int
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

    @property
    def waves(self) -> list[tuple[LayerRange, ...]]:
        """The shards that run at once, wave after wave."""
        return [
            self.shards[start : start + self.chain]
            for start in range(0, len(self.shards), self.chain)
        ]
