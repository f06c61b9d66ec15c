"""The device and the threads of this process."""

import contextlib
import gc
import socket

import torch

from schemas.errors import ConfigError
from schemas.model.dtypes import computed_in
from schemas.request.config import Device, DType


def set_threads(threads: int) -> None:
    """CPU threads of this worker."""
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # already set in a process that Ray used before
        torch.set_num_interop_threads(1)


def find_device(asked: Device) -> torch.device:
    """The device of this worker. Raises ConfigError if it has none of the kind asked for."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError(
            f"cluster.device is cuda, but a worker on {socket.gethostname()} has none (torch "
            f"{torch.__version__}); install a CUDA build of torch there, or use --device cpu"
        )
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def compute_dtype(asked: DType, stored: str, device: torch.device) -> torch.dtype:
    """The dtype in which a checkpoint of dtype `stored` is computed."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type != "cuda":
        return torch.float32
    computed: torch.dtype = getattr(torch, computed_in(stored))
    return computed


def free_cached() -> None:
    """Give back what no tensor holds any more: cycles are broken, the device's cache is emptied."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
