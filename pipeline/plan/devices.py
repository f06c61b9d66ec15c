"""How fast devices and nodes are: stated peaks, and the part of each that a plan counts on.

Peaks of a device come from NVIDIA's data sheets (H100 SXM, H200 SXM, A100 80GB SXM, L40S):
dense bf16, float32 without TF32, float64 on matrix units if it has any, memory bandwidth.
The CPU's figures are for one core: 32 float32 operations a cycle (two AVX2 FMAs) at 3 GHz.

The parts are assumptions; measured on a GPU is only the eigenproblem (docs/plan-70b.md):
- 40 % of bf16: one layer at a time, micro-batches of a few thousand tokens, plain transformers.
- 70 % of float32 and float64: matrix products of a few thousand rows and columns.
- 0.3 flop a byte of memory traffic for the symmetric eigenproblem (of the 9 n^3 counted here): its
  tridiagonalisation is bound by memory. That is 1.0 TFLOP/s on an H100, 1.5 % of its peak;
  arXiv 2410.02170 finds less than 3 %. On an H200, one of 8,192 took at most the 3.4 s of this.
- the same for the SVD (of its 6 m n^2 + 20 n^3, by `gesvd`), bound by memory twice over: half of
  the flops of a bidiagonalisation are products of a matrix and a vector, 0.25 flop a byte, and the
  QR iteration after it rotates pairs of columns, 0.19.
- the whole cluster shares one storage: cluster.storage_read and storage_write give the rate for all
  nodes together, at most what their networks carry.
- the network of a node carries 25 GB/s, 20 % of it through Ray's objects.
- one thread hashes (SHA-256) 1.0 GB/s; 0.9 was measured.
- a device and its host exchange 40 % of the link's peak (PCIe 5 x16: 64 GB/s a way, PCIe 4: 32),
  from pinned memory; on the CPU it is the memory's own bandwidth.
"""

from typing import NamedTuple

from schemas.request.config import RunConfig
from schemas.run.plan import ClusterSpec

GB, _TERA = 1e9, 1e12


class Device(NamedTuple):
    """Peaks: operations a second in bf16, float32 and float64; bytes a second of its memory and of
    its link to the host; its memory in bytes.
    """

    bf16: float
    float32: float
    float64: float
    bandwidth: float
    link: float
    memory: int


DEVICES: dict[str, Device] = {
    "h100": Device(989 * _TERA, 67 * _TERA, 67 * _TERA, 3.35 * _TERA, 64 * GB, 80 * 10**9),
    "h200": Device(989 * _TERA, 67 * _TERA, 67 * _TERA, 4.8 * _TERA, 64 * GB, 141 * 10**9),
    "a100": Device(312 * _TERA, 19.5 * _TERA, 19.5 * _TERA, 2.04 * _TERA, 32 * GB, 80 * 10**9),
    "l40s": Device(362 * _TERA, 91.6 * _TERA, 1.43 * _TERA, 0.864 * _TERA, 32 * GB, 48 * 10**9),
    "cpu": Device(0.096 * _TERA, 0.096 * _TERA, 0.048 * _TERA, 20 * GB, 20 * GB, 0),
}

DEFAULT = "h100"  # an unknown device is assumed to have the same proportions when plans compete
_HALF_PART, _FULL_PART, _SOLVER_FLOPS_A_BYTE = 0.4, 0.7, 0.3
_LINK_PART = 0.4

# Bytes a second: of a thread that hashes or averages, of a node's network at most, and of it as
# Ray's objects.
HOST_THREAD, NETWORK = 1.0 * GB, 25 * GB
OBJECTS = NETWORK * 0.2


class Rates(NamedTuple):
    """Rates per second: operations of a worker (`solver`: of eigenproblems and SVDs), bytes of its
    link; bytes that all nodes together read and write.
    """

    compute: float
    float64: float
    solver: float
    link: float
    read: float
    write: float


def row(device_name: str) -> Device | None:
    """Find a device by the name that torch or a flag gives ("NVIDIA H100 80GB HBM3", "h100")."""
    return next((peaks for name, peaks in DEVICES.items() if name in device_name.lower()), None)


def rates(cluster: ClusterSpec, config: RunConfig) -> Rates | None:
    """Return the rates of a cluster and its workers; None if its device is unknown."""
    peaks = row(cluster.device_name) if cluster.on_gpu else DEVICES["cpu"]
    if peaks is None:
        return None
    cores = 1 if cluster.on_gpu else config.numerics.threads
    half = cluster.on_gpu and cluster.dtype in ("bfloat16", "float16")
    return Rates(
        compute=peaks.bf16 * _HALF_PART if half else peaks.float32 * _FULL_PART * cores,
        float64=peaks.float64 * _FULL_PART * cores,
        solver=peaks.bandwidth * _SOLVER_FLOPS_A_BYTE,
        link=peaks.link * _LINK_PART,
        read=config.cluster.storage_read,
        write=config.cluster.storage_write,
    )


def assumptions(config: RunConfig) -> tuple[str, ...]:
    """Return the assumptions behind a plan's seconds, in words."""
    read, write = config.cluster.storage_read / GB, config.cluster.storage_write / GB
    return (
        f"storage that gives the whole cluster {read:g} GB/s to read (--storage-read) and "
        f"{write:g} GB/s to write (--storage-write)",
        f"eigenproblems and SVDs at {_SOLVER_FLOPS_A_BYTE} flop a byte of device memory",
    )
