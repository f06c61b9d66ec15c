"""The device and the threads of this process."""

import contextlib
import gc
import socket

import torch

from schemas.errors import ConfigError
from schemas.model.dtypes import computed_in
from schemas.request.groups import Device, DType


def set_threads(threads: int) -> None:
    """Set the CPU threads of this worker."""
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # already set in a process that Ray used before
        torch.set_num_interop_threads(1)


def find_device(asked: Device) -> torch.device:
    """Return the device of this process, where cuSOLVER solves: before 2.14, torch gives the LU
    of one large rectangular matrix to a routine of MAGMA's for batches of small ones.

    Raises ConfigError if it lacks the kind asked for.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError(
            f"device is cuda, but {socket.gethostname()} has none that torch {torch.__version__} "
            "sees; install a CUDA build of torch there, or use --device cpu"
        )
    if not available or asked == "cpu":
        return torch.device("cpu")
    torch.backends.cuda.preferred_linalg_library("cusolver")
    return torch.device("cuda")


def compute_dtype(asked: DType, stored: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which a checkpoint stored as `stored` is computed."""
    auto = computed_in(stored) if device.type == "cuda" else "float32"
    found: torch.dtype = getattr(torch, auto if asked == "auto" else asked)
    return found


def training_dtype(asked: DType, device: torch.device) -> torch.dtype:
    """Return the dtype in which a model is trained, with its factors in float32: bfloat16 if
    the device multiplies it faster, float32 elsewhere.
    """
    auto = "bfloat16" if has_bfloat16_units(device) else "float32"
    found: torch.dtype = getattr(torch, auto if asked == "auto" else asked)
    return found


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16 faster than float32: CUDA, and
    CPUs with Intel AMX or AVX512_BF16. Others emulate them, several times slower.
    """
    there = torch.cpu.get_capabilities()
    return device.type == "cuda" or any(there.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def free_cached() -> None:
    """Free unreferenced memory: collects cycles and empties the device's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
