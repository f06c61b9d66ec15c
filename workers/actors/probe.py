"""The device, dtype and node of a worker."""

import platform

import ray
import torch

from schemas.request.groups import Device, DType
from schemas.run.plan import WorkerFacts
from workers.process.devices import compute_dtype, find_device, training_dtype


@ray.remote(max_retries=0, max_calls=1)  # its process would hold a context of the GPU
def probe(device: Device, dtype: DType, stored: str) -> WorkerFacts:
    """Return what a worker would run on, on the node of this task."""
    found = own_device(device)
    return worker_facts(found, compute_dtype(dtype, stored, found), dtype)


def own_device(asked: Device) -> torch.device:
    """Return the device of this worker: no GPU that Ray did not give it, unless one was asked for.
    (Ray leaves those that it does not count visible.) Raises ConfigError as `find_device` does.
    """
    return find_device("cpu" if asked == "auto" and not ray.get_gpu_ids() else asked)


def worker_facts(device: torch.device, dtype: torch.dtype, asked: DType) -> WorkerFacts:
    """Return what this worker runs on, in `dtype`, and what it trains in if `asked` to."""
    cuda = device.type == "cuda"
    return WorkerFacts(
        node=ray.get_runtime_context().get_node_id(),
        device=device.type,
        device_name=torch.cuda.get_device_name() if cuda else platform.machine(),
        device_memory=torch.cuda.mem_get_info()[1] if cuda else 0,
        dtype=str(dtype).removeprefix("torch."),
        training_dtype=str(training_dtype(asked, device)).removeprefix("torch."),
        gpu_reserved=bool(ray.get_gpu_ids()),
    )
