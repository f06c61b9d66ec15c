"""What an exception in a worker means: one row of the table each, and what is made of it."""

import errno
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from schemas.errors import DamagedError, StorageError, StorageFullError, WorkerError
from workers.process.failures import Failure, failure, guarded, patiently, storage_explained

KINDS: list[tuple[BaseException, Failure]] = [
    (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "device memory",
    ),
    (RuntimeError("CUDA error: out of memory"), "device memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "device memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"), "device memory"),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling"), "device memory"),
    (torch.AcceleratorError("CUDA error: out of memory"), "device memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "host memory"),
    (MemoryError(), "host memory"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
    (torch.AcceleratorError("an uncorrectable ECC error"), "device"),
    (OSError(errno.ENOSPC, "No space left on device"), "storage full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "storage full"),
    (OSError(errno.EROFS, "Read-only file system"), "storage full"),
    (OSError(errno.EIO, "Input/output error"), "storage"),
    (OSError(errno.ESTALE, "Stale file handle"), "storage"),
    (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "storage"),
    (PermissionError(errno.EACCES, "Permission denied"), "storage"),
    (TimeoutError("timed out"), "storage"),
    (FileNotFoundError(errno.ENOENT, "No such file"), "other"),
    (RuntimeError("shapes do not match"), "other"),
    (ValueError("CUDA error in the words of something else"), "other"),
]


class Device:
    """A worker whose methods fail as they are told."""

    def __init__(self, place: Path, *errors: BaseException) -> None:
        self.place = place
        self.calls = 0
        self._errors = list(errors)

    def _work(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"

    @guarded(repeatable=True)
    def write_output(self, key: str) -> str:
        return self._work()

    @guarded()
    def forward(self, rows: torch.Tensor) -> str:
        return self._work()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited, none of them really."""
    found: list[float] = []
    monkeypatch.setattr("workers.process.failures.time.sleep", found.append)
    return found


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: repr(value)[:60])
def test_every_failure_has_its_kind(error: BaseException, kind: Failure) -> None:
    assert failure(error) == kind


def test_torch_words_a_lack_of_host_memory_as_the_table_has_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert failure(caught.value) == "host memory"


def test_storage_that_fails_for_a_moment_is_tried_again(tmp_path: Path, slept: list[float]) -> None:
    stale = [OSError(errno.ESTALE, "Stale file handle") for _ in range(3)]
    worker = Device(tmp_path, *stale)
    assert worker.write_output("outputs/x") == "done"
    assert worker.calls == 4
    assert slept == [1.0, 4.0, 16.0]


def test_storage_that_goes_on_failing_is_clear(tmp_path: Path, slept: list[float]) -> None:
    errors = [OSError(errno.EIO, "Input/output error", "/run/x") for _ in range(9)]
    worker = Device(tmp_path, *errors)
    with pytest.raises(
        StorageError, match=r"/run/x: Input/output error, in write output outputs/x; .*start the"
    ) as caught:
        worker.write_output("outputs/x")
    assert not isinstance(caught.value, StorageFullError)
    assert worker.calls == 4


def test_a_full_disk_is_not_tried_again(tmp_path: Path, slept: list[float]) -> None:
    place = tmp_path / "not" / "yet"
    worker = Device(place, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageFullError) as caught:
        worker.write_output("outputs/x")
    assert (worker.calls, slept) == (1, [])
    said = str(caught.value)
    assert said.startswith(f"{place}: No space left on device, in write output outputs/x; ")
    assert re.search(rf"; [\d,]+ bytes are free at {place}; ", said)
    assert "make room there, then start the same command again" in said


def test_a_method_that_may_not_be_done_twice_is_not(tmp_path: Path, slept: list[float]) -> None:
    worker = Device(tmp_path, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError, match="in forward rows"):
        worker.forward(torch.zeros(2, 2))
    assert (worker.calls, slept) == (1, [])


def test_a_lack_of_memory_names_the_work_and_the_remedy(tmp_path: Path) -> None:
    worker = Device(tmp_path, torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore"))
    with pytest.raises(WorkerError, match=r"forward rows: out of device memory \(CUDA out of m"):
        worker.forward(torch.zeros(1))
    worker = Device(tmp_path, MemoryError())
    with pytest.raises(WorkerError, match=r"out of host memory \(MemoryError\).*fewer workers"):
        worker.forward(torch.zeros(1))


def test_a_failing_device_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    worker = Device(tmp_path, RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel"))
    with pytest.raises(SystemExit) as left:
        worker.forward(torch.zeros(1))
    assert left.value.code == 1
    assert caplog.messages == [
        "the device fails, so this worker ends: forward rows: "
        "CUDA error: device-side assert triggered"
    ]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError("x"), KeyError("y")])
def test_what_is_not_known_passes_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        Device(tmp_path, error).write_output("outputs/x")
    assert caught.value is error


def test_the_driver_has_the_same_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFullError, match=r"run\.json: Read-only file system, in the driver"),
        storage_explained("the driver", tmp_path),
    ):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "run.json"))


def test_a_store_that_fails_once_is_asked_again(slept: list[float]) -> None:
    """Its client does not ask again for a large file that breaks off."""
    answers = iter([StorageError("s3://b/moments: the store did not do it")])

    def read() -> str:
        for error in answers:
            raise error
        return "rows"

    assert patiently(read) == "rows"
    assert len(slept) == 1
    with pytest.raises(DamagedError):
        patiently(lambda: fail_with(DamagedError("gone")))
    assert len(slept) == 1


def fail_with(error: Exception) -> Any:
    raise error


def test_work_is_not_repeated_for_another_reason(slept: list[float]) -> None:
    def fail() -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        patiently(fail)
    assert slept == []
