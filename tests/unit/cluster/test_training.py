"""What a driver makes of Ray Train's end, and of the states that one that was killed has left."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.util.queue import Empty

from pipeline.cluster import training
from pipeline.cluster.training import _Fit, _tidy, _trainer, train
from pipeline.progress import Progress
from schemas.errors import (
    NumericsError,
    OwnershipError,
    StorageError,
    StorageFullError,
    WorkerError,
)
from schemas.result.recovery import Look
from schemas.run.plan import RecoveryMemory
from tests.recovery import RESULT, job_of
from workers.recovery.job import Job
from workers.storage.keys import recovered_key
from workers.storage.store import Store

SEVEN = RecoveryMemory(device=0, host=0, offload=False, least_workers=7)


def states(place: Path, known: list[str], there: list[str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name in there:
        (place / name).mkdir()
        (place / name / "progress.json").write_text("{}")
    record = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in known]}
    (place / "checkpoint_manager_snapshot.json").write_text(json.dumps(record))


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def test_only_states_without_a_record_are_removed(tmp_path: Path) -> None:
    states(tmp_path, ["checkpoint_b"], ["checkpoint_a", "checkpoint_b", "checkpoint_c"])
    _tidy(tmp_path, Progress())
    assert names(tmp_path) == ["checkpoint_b", "checkpoint_manager_snapshot.json"]


def test_before_the_first_record_no_state_is_of_use(tmp_path: Path) -> None:
    _tidy(tmp_path / "absent", Progress())
    (tmp_path / "checkpoint_a").mkdir()
    _tidy(tmp_path, Progress())
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut off", "empty", "no record", "lost state"])
def test_training_begins_anew_if_the_record_is_damaged(tmp_path: Path, damage: str) -> None:
    place, progress = tmp_path / "identity", Progress()
    states(place, ["checkpoint_a"], [] if damage == "lost state" else ["checkpoint_a"])
    snapshot = place / "checkpoint_manager_snapshot.json"
    contents = {"cut off": snapshot.read_text()[:20], "empty": "", "no record": "[1]"}
    snapshot.write_text(contents.get(damage, snapshot.read_text()))
    _tidy(place, progress)
    assert names(place) == []
    assert "are damaged" in progress.warnings[0]


class Failed(Exception):  # noqa: N818 (as Ray Train's, which has no name of its own)
    """An error of Ray Train: what every worker raised, by its rank."""

    worker_failures: dict[int, Exception]


class Reports(list[Look]):
    """A queue of reports to come."""

    def get(self, timeout: float) -> Look:
        if not self:
            raise Empty
        return self.pop(0)

    def empty(self) -> bool:
        return not self

    def shutdown(self, force: bool) -> None:
        pass


def fit_of(job: Job, fit: Callable[[], object], *looks: Look) -> _Fit:
    trainer: Any = SimpleNamespace(fit=fit)
    reports: Any = Reports(looks)
    return _Fit(job, trainer, reports)


def inputs() -> Any:
    windows = torch.zeros(2, 4, dtype=torch.int64)
    return SimpleNamespace(recovery=SimpleNamespace(windows=windows, held_out=windows))


@pytest.mark.parametrize("gone", ["workers", "GPUs", "nothing"])
def test_training_ends_if_the_cluster_no_longer_has_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Ray Train alone would wait for them for ever."""
    monkeypatch.setattr(training, "on_gpus", lambda _: gone != "GPUs")
    monkeypatch.setattr(training, "workers_there", lambda *_: 6 if gone == "workers" else 7)
    monkeypatch.setattr(training, "start_timeout", lambda _: 0.1)
    over = threading.Event()
    fit = fit_of(job_of(tmp_path / "run", memory=SEVEN, on_gpu=True), over.wait)
    if gone == "nothing":
        over.set()
        assert list(fit.events()) == []
        return
    with pytest.raises(WorkerError, match=r"no room for 7 workers, .* start the same command"):
        list(fit.events())
    over.set()


@pytest.mark.parametrize(("there", "asked"), [(6, 7), (7, 7), (8, (7, 8))])
def test_training_waits_for_as_many_workers_as_can_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, asked: object
) -> None:
    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: there)
    monkeypatch.setattr(training, "TorchTrainer", lambda _, **given: SimpleNamespace(**given))
    reports: Any = Reports()
    trainer: Any = _trainer(job_of(tmp_path / "run", memory=SEVEN), reports)
    assert trainer.scaling_config.num_workers == asked


@pytest.mark.parametrize(("on_gpu", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_training_computes_where_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, backend: str
) -> None:
    """Also on a cluster with GPUs that its torch cannot use."""
    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: 2)
    monkeypatch.setattr(training, "TorchTrainer", lambda _, **given: SimpleNamespace(**given))
    reports: Any = Reports()
    trainer: Any = _trainer(job_of(tmp_path / "run", on_gpu=on_gpu), reports)
    assert trainer.torch_config.backend == backend
    assert trainer.scaling_config.use_gpu == on_gpu
    assert fit_of(job_of(tmp_path / "run", on_gpu=on_gpu), bool).has_room()


@pytest.mark.parametrize("committed", [True, False])
def test_a_fit_that_fails_after_its_result_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    store = Store(tmp_path / "run")

    def fit() -> None:
        if committed:
            store.commit(recovered_key("same", None), [], RESULT.model_dump(mode="json"))
        raise OSError("the last state was not uploaded")

    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: 1)
    monkeypatch.setattr(training, "_fit", lambda job: fit_of(job, fit))
    if committed:
        train(job_of(tmp_path / "run"), inputs(), Progress(), lambda: None)
        return
    with pytest.raises(WorkerError, match="the last state was not uploaded"):
        train(job_of(tmp_path / "run"), inputs(), Progress(), lambda: None)


def test_a_full_disk_ends_training_and_is_no_fault_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: 1)
    full = OSError(errno.ENOSPC, "No space left on device", "/states/x")
    failed = Failed("a worker failed")
    failed.worker_failures = {0: RuntimeError("connection closed"), 1: full}

    def fit() -> None:
        raise failed

    monkeypatch.setattr(training, "_fit", lambda job: fit_of(job, fit))
    with pytest.raises(StorageFullError, match=r"/states/x: No space left .* bytes are free at"):
        train(job_of(tmp_path / "run"), inputs(), Progress(), lambda: None)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ([ConnectionResetError("by a peer"), NumericsError("not finite")], NumericsError),
        ([ConnectionResetError("by a peer"), RuntimeError("what it was")], WorkerError),
        ([OSError(errno.EIO, "Input/output error")], StorageError),
    ],
)
def test_what_failed_first_is_told_of_the_workers_of_a_fit(
    tmp_path: Path, raised: list[Exception], told: type[Exception]
) -> None:
    fit = fit_of(job_of(tmp_path / "run"), bool)
    failed = Failed("workers failed")
    failed.worker_failures = dict(enumerate(raised))
    fit.start()
    fit.join()
    fit.error = failed
    assert type(fit.failure()) is told


def test_training_without_memory_says_what_takes_less(tmp_path: Path) -> None:
    fit = fit_of(job_of(tmp_path / "run"), bool)
    failed = Failed("a worker failed")
    failed.worker_failures = {0: torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")}
    fit.start()
    fit.join()
    fit.error = failed
    assert str(fit.failure()) == (
        "recovery: CUDA out of memory. Tried 2 GiB; lower recovery.micro_batch or "
        "recovery.sequence_length, or set recovery.offload to true"
    )


@pytest.mark.parametrize(("there", "fits"), [(1, 3), (0, 1)])
def test_training_that_got_further_goes_on_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, fits: int
) -> None:
    begun = list[Look]()

    def fit() -> None:
        raise OSError("a worker was lost")

    def begin(job: Job) -> _Fit:
        step = min(len(begun) + 1, 2)  # the third gets no further
        begun.append(Look(step=step, tokens=step, held_out=1.0, loss=1.0))
        return fit_of(job, fit, begun[-1])

    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: there)
    monkeypatch.setattr(training, "_fit", begin)
    with pytest.raises(WorkerError, match="a worker was lost"):
        train(job_of(tmp_path / "run"), inputs(), Progress(), lambda: None)
    assert len(begun) == fits


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_driver_that_has_lost_the_run_directory_changes_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Before training, at an event, and after the last one."""
    job, store, left = job_of(tmp_path / "run"), Store(tmp_path / "run"), [None] * allowed

    def require() -> None:
        if not left:
            raise OwnershipError("another driver has taken it")
        left.pop()

    look = Look(step=1, tokens=1, held_out=1.0, loss=1.0)
    store.commit(recovered_key("same", None), [], RESULT.model_dump(mode="json"))
    states(tmp_path / "run" / "training" / "same", ["checkpoint_a"], ["checkpoint_a"])
    monkeypatch.setattr(training, "on_gpus", lambda _: True)
    monkeypatch.setattr(training, "workers_there", lambda *_: 1)
    monkeypatch.setattr(training, "_fit", lambda job: fit_of(job, bool, look))
    with pytest.raises(OwnershipError):
        train(job, inputs(), Progress(), require)
    assert names(tmp_path / "run" / "training" / "same")[0] == "checkpoint_a"
    assert (store.record(recovered_key("same", None)) is not None) == (allowed == 0)
