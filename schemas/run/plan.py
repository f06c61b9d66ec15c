"""The plan of a run: what is done, by how many workers, and what it takes."""

from typing import Literal

from schemas.base import Schema
from schemas.run.stages import StageName

SAVED_BYTES = 12  # of a trained parameter in a saved state, float32: itself, two moments of AdamW


class WorkerFacts(Schema):
    """The node, device and dtypes of a worker: that of streams, and that of training."""

    node: str
    device: str
    device_name: str
    device_memory: int
    dtype: str
    training_dtype: str
    gpu_reserved: bool

    @property
    def kind(self) -> tuple[str, ...]:
        """What numbers depend on: equal for all workers of a run."""
        return self.device, self.device_name, self.dtype, self.training_dtype


class ClusterSpec(Schema):
    """The machines of a run, found in Ray or described by flags. Memory is in bytes, per worker.

    On the CPU a worker's device is the host, so `device_memory` and `host_memory` are the same.
    The workers are spread evenly over `nodes`, and the fullest has `per_node`; `dtype` is what
    they compute in; `assumed` lists what nobody stated.
    """

    workers: int
    device: str
    device_name: str
    device_memory: int
    host_memory: int
    dtype: str
    nodes: int = 1
    per_node: int = 1
    assumed: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


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


class WorkerMemory(Schema):
    """What the largest worker holds, in bytes, item by item.

    On the device: `weights` in the compute dtype, and beside them float32 sums of the moments of
    one stream at a time with `activations` of the micro-batches in flight; when these are gone, the
    float64 workspace to `factorise` the largest matrix. On the host: float64 and float32 `sums` of
    one stream's moments, what is read or committed at a time (`transit`, which includes the largest
    basis), and the `process` itself. On the CPU, the host holds all of it.
    """

    weights: int
    forward_moments: int
    backward_moments: int
    activations: int
    factorise: int
    sums: int
    bases: int
    transit: int
    process: int

    @property
    def device(self) -> int:
        """Peak of device memory, during calibration or factorisation."""
        moments = max(self.forward_moments, self.backward_moments)
        return self.weights + max(moments + self.activations, self.factorise)

    @property
    def host(self) -> int:
        """Peak of host memory, without the device's."""
        return self.process + self.sums + self.transit


class DiskUse(Schema):
    """Bytes of a run on disk: the first seven and `outputs`, until they are published, in the run
    directory; then `outputs`, the checkpoints of all ratios.

    `boundaries` are hidden states and gradients between waves, or later the base's last hidden
    states on the text of the comparison; `partial_sums` what replicas add up; `training` two states
    of a recovery, the last and the one that replaces it; `recovered` its factors, beside those that
    it began with.
    """

    moments: int
    bases: int
    boundaries: int
    partial_sums: int
    training: int = 0
    recovered: int = 0
    factors: int = 0
    outputs: int

    @property
    def run_directory(self) -> int:
        made = self.moments + self.bases + self.boundaries + self.partial_sums
        return made + self.training + self.recovered + self.factors + self.outputs


Resource = Literal[
    "compute", "float64", "eigensolver", "SVD", "host thread", "host link", "disk", "network"
]


class StageCost(Schema):
    """One stage: floating-point operations and bytes of all workers together.

    `network_bytes` cross between workers, or go to and from shared storage. `seconds` are by
    resource; no overlap is assumed, so they add up; None if throughputs are not known.
    """

    name: StageName
    flops: int
    read_bytes: int
    written_bytes: int
    network_bytes: int
    seconds: dict[Resource, float] | None

    @property
    def total(self) -> float | None:
        """Seconds of the stage."""
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def limit(self) -> Resource | None:
        """The resource that takes most of the stage."""
        by_seconds = sorted((value, resource) for resource, value in (self.seconds or {}).items())
        return by_seconds[-1][1] if by_seconds else None


class RecoveryMemory(Schema):
    """What a worker of a recovery holds, in bytes; with `offload`, parameters and the states of the
    optimiser are on the host. `least_workers` can hold it in this way: fewer may not go on.
    """

    device: int
    host: int
    offload: bool
    least_workers: int


class RoundPlan(Schema):
    """One of several rounds: its run as a whole. `disk_bytes` are of run directory and checkpoint,
    at most, but without the states of its training if another round follows: they are gone then.
    """

    ratio: float
    seconds: float | None
    disk_bytes: int


class Layout(Schema):
    """How the layers are spread over workers, and the memory of the largest one.

    The shards are in the order of the layers. `chain` of them run at once, one per worker, on
    `replicas` copies of the chain, which fill so many `nodes`; the next `chain` shards are the next
    wave.
    """

    shards: tuple[LayerRange, ...]
    chain: int
    replicas: int
    nodes: int = 1
    memory: WorkerMemory

    @property
    def workers(self) -> int:
        """The number of workers started."""
        return self.chain * self.replicas

    @property
    def waves(self) -> list[tuple[LayerRange, ...]]:
        """The shards that run at once, wave by wave."""
        starts = range(0, len(self.shards), self.chain)
        return [self.shards[start : start + self.chain] for start in starts]


class Plan(Layout):
    """What a run does, on which machines, and what it takes.

    There are `cuts` cuts: at several ratios, or trials of one. Ranks are multiples of
    `rank_multiple`. `seconds` is the whole run; `bottleneck` names the longest stage and the
    resource that limits it; `assumed` lists assumptions behind these figures that nobody stated or
    measured. Of several `rounds`, these figures are the last one's.
    """

    cluster: ClusterSpec
    total_parameters: int
    targeted_parameters: int
    kinds: tuple[MatrixKind, ...]
    ratios: tuple[RatioPlan, ...]
    cuts: int = 1
    rank_multiple: int = 1
    recovery: RecoveryMemory | None = None
    disk: DiskUse
    stages: tuple[StageCost, ...]
    seconds: float | None
    bottleneck: str | None
    assumed: tuple[str, ...] = ()
    rounds: tuple[RoundPlan, ...] = ()

    @property
    def host_memory(self) -> int:
        """Host memory of the largest worker, in bytes; on the CPU it includes the device's."""
        return self.memory.host + (0 if self.cluster.on_gpu else self.memory.device)
