"""What a driver makes of Ray Train's end, and of the states that one that was killed has left."""

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
from pipeline.cluster.training import _Fit, _tidy, train
from pipeline.progress import Progress
from schemas.errors import WorkerError
from schemas.run.plan import RecoveryMemory
from tests.recovery import RESULT, job_of
from workers.recovery.job import Job
from workers.storage.keys import recovered_key
from workers.storage.store import Store


def states(place: Path, known: list[str], there: list[str]) -> None:
    place.mkdir(exist_ok=True)
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


class Silent:
    """A queue of reports of which none comes."""

    def get(self, timeout: float) -> None:
        raise Empty

    def empty(self) -> bool:
        return True

    def shutdown(self, force: bool) -> None:
        pass


def silent(job: Job, fit: Callable[[], object]) -> _Fit:
    trainer: Any = SimpleNamespace(fit=fit)
    reports: Any = Silent()
    return _Fit(job, trainer, reports)


@pytest.mark.parametrize("gone", ["workers", "GPUs", "nothing"])
def test_training_ends_if_the_cluster_no_longer_has_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Ray Train alone would wait for them for ever."""
    gpus = iter([True] * 3 if gone == "GPUs" else [])
    monkeypatch.setattr(training, "on_gpus", lambda _: next(gpus, gone != "GPUs"))
    monkeypatch.setattr(training, "workers_there", lambda *_: 6 if gone == "workers" else 7)
    monkeypatch.setattr(training, "start_timeout", lambda _: 0.1)
    memory = RecoveryMemory(device=0, host=0, offload=False, least_workers=7)
    over = threading.Event()
    fit = silent(job_of(tmp_path / "run", memory=memory), lambda: over.wait(0.5))
    if gone == "nothing":
        assert list(fit.events()) == []
        return
    with pytest.raises(WorkerError, match=r"no room for 7 workers, .* start the same command"):
        list(fit.events())
    over.set()


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
    monkeypatch.setattr(training, "_fit", lambda job: silent(job, fit))
    windows = torch.zeros(2, 4, dtype=torch.int64)
    inputs: Any = SimpleNamespace(recovery=SimpleNamespace(windows=windows, held_out=windows))
    if committed:
        train(job_of(tmp_path / "run"), inputs, Progress())
        return
    with pytest.raises(WorkerError, match="the last state was not uploaded"):
        train(job_of(tmp_path / "run"), inputs, Progress())
