"""What an exception in a worker means, and how it is handled: one table.

Nothing here knows Ray. `guarded` wraps the methods of the actors; errors that it does not know
pass through unchanged.
"""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, TypeVar

import torch

from schemas.errors import (
    STORAGE_FULL,
    CompressorError,
    ConfigError,
    StorageError,
    StorageFullError,
    WorkerError,
)
from schemas.location import Location
from workers.process.logs import log
from workers.process.memory import free_bytes

Failure = Literal["device memory", "host memory", "device", "storage full", "storage", "other"]
P = ParamSpec("P")
R = TypeVar("R")

DELAYS = (1.0, 4.0, 16.0)  # seconds before retries, after storage has answered with an error
_PASSING = {  # of a disk, a mount and a network; EACCES is also a ticket that has run out
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.EACCES),
    *(errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
# torch's texts for errors without a class of their own; the first row found in the text counts.
_TEXTS: tuple[tuple[str, Failure], ...] = (
    ("DefaultCPUAllocator", "host memory"),
    ("CUDA out of memory", "device memory"),
    ("CUDA error: out of memory", "device memory"),
    ("CUBLAS_STATUS_ALLOC_FAILED", "device memory"),
    ("CUSOLVER_STATUS_ALLOC_FAILED", "device memory"),
    # A library allocates its handle itself, and says no more if it cannot.
    ("CUBLAS_STATUS_NOT_INITIALIZED", "device memory"),
    ("CUSOLVER_STATUS_INTERNAL_ERROR", "device memory"),
    ("CUDA error", "device"),
)


def failure(error: BaseException) -> Failure:
    """Classify an exception. After a "device" failure the device computes nothing any more."""
    if type(error) is StorageError:  # of a store; what is damaged or full does not pass
        return "storage"
    if isinstance(error, torch.OutOfMemoryError):
        return "device memory"
    if isinstance(error, MemoryError):
        return "host memory"
    if isinstance(error, OSError):
        if error.errno in STORAGE_FULL:
            return "storage full"
        passing = error.errno in _PASSING or isinstance(error, TimeoutError)
        return "storage" if passing else "other"
    if isinstance(error, RuntimeError):
        text = str(error)
        otherwise: Failure = "device" if isinstance(error, torch.AcceleratorError) else "other"
        return next((found for part, found in _TEXTS if part in text), otherwise)
    return "other"


def short_of_memory(error: BaseException) -> bool:
    """Whether the same work may succeed in smaller parts, or in other memory."""
    return failure(error) in ("device memory", "host memory")


def explained(error: BaseException, what: str, place: Location) -> CompressorError | None:
    """Turn a known exception into an error that says what to do; None for unknown ones.

    `what` was being done; `place` is where the work is kept, for an error that names no file.
    """
    found, name = failure(error), getattr(error, "filename", None) or place
    if found == "storage full":
        return StorageFullError(
            f"{name}: {getattr(error, 'strerror', error)}, in {what}{_free(place)}; "
            "make room there, then start the same command again"
        )
    if found == "storage":
        refused = isinstance(error, PermissionError)
        why = "may not be used" if refused else "the storage does not answer"
        return StorageError(
            f"{name}: {getattr(error, 'strerror', error)}, in {what}; {why}; start the same "
            f"command again when it {'may' if refused else 'does'}"
        )
    if found == "device memory":
        return WorkerError(
            f"{what}: out of device memory ({first_line(error)}); plan with fewer layers a worker "
            "(--set cluster.shard_layers=N), or stop what else is on that device"
        )
    if found == "host memory":
        return WorkerError(
            f"{what}: out of host memory ({first_line(error)}); use fewer workers a node, or "
            "fewer layers a worker (--set cluster.shard_layers=N)"
        )
    return None


def _free(place: Location) -> str:
    """Say how much is free on the disk of a folder, which need not exist yet."""
    free = free_bytes(place)
    return "" if free is None else f"; {free:,} bytes are free at {place}"


@contextmanager
def storage_explained(what: str, place: Location) -> Iterator[None]:
    """Turn known storage errors into StorageError with a remedy; other errors pass."""
    try:
        yield
    except OSError as error:
        if (found := explained(error, what, place)) is None:
            raise
        raise found from error


def patiently(work: Callable[[], R], delays: Sequence[float] = DELAYS) -> R:
    """Run `work`, which must be repeatable; retry after each of `delays` if storage failed it."""
    for delay in delays:
        try:
            return work()
        except (OSError, StorageError) as error:
            if failure(error) != "storage":
                raise
            log.warning("storage: %s; trying again in %g s", error, delay)
        time.sleep(delay)
    return work()


def guarded(
    repeatable: bool = False,
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Decorate a method of a worker, whose `place` is where it keeps its work, so that known
    failures are explained.

    A `repeatable` method is retried if storage failed it. A failing device ends the process: later
    calls on it would fail too, and a new process gets a new context.
    """

    def around(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(method)
        def run(worker: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            delays = DELAYS if repeatable else ()
            try:
                return patiently(lambda: method(worker, *args, **kwargs), delays)
            except (RuntimeError, MemoryError, OSError) as error:
                what = _called(method.__name__, args)
                if failure(error) == "device":
                    _end_process(f"{what}: {first_line(error)}")
                if (found := explained(error, what, worker.place)) is None:
                    raise
                raise found from error

        return run

    return around


def _end_process(why: str) -> NoReturn:
    log.error("the device fails, so this worker ends: %s", why)
    os._exit(1)


def _called(method: str, args: tuple[object, ...]) -> str:
    """Name a method and its first argument, in words."""
    return " ".join([method.replace("_", " "), *map(_name, args[:1])])


def _name(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_name, value))
    return str(getattr(value, "name", value)) if not isinstance(value, torch.Tensor) else "rows"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_seen(what: str, folder: Location) -> None:
    """Raises ConfigError if a folder, named by its whole path, is not seen on this node."""
    if isinstance(folder, Path) and folder.is_absolute() and not folder.is_dir():
        raise not_seen(what, folder)


def not_seen(what: str, place: Location) -> ConfigError:
    """Return the error of a node that does not see a place that all have to see."""
    return ConfigError(
        f"{what} {place} is not seen on {socket.gethostname()}; name a folder on storage that all "
        "nodes share, or a URL of an object store"
    )
