"""What a driver makes of Ray Train's end, and of the states that one that was killed has left."""

import json
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
from tests.recovery import RESULT, job_of
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


@pytest.mark.parametrize("committed", [True, False])
def test_a_fit_that_fails_after_its_result_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    store = Store(tmp_path / "run")

    def fit() -> None:
        if committed:
            store.commit(recovered_key("same", None), [], RESULT.model_dump(mode="json"))
        raise OSError("the last state was not uploaded")

    trainer, reports = SimpleNamespace(fit=fit), Silent()
    monkeypatch.setattr(training, "_fit", lambda _: _Fit(trainer, reports))  # type: ignore[arg-type]
    windows = torch.zeros(2, 4, dtype=torch.int64)
    inputs: Any = SimpleNamespace(recovery=SimpleNamespace(windows=windows, held_out=windows))
    if committed:
        train(job_of(tmp_path / "run"), inputs, Progress())
        return
    with pytest.raises(WorkerError, match="the last state was not uploaded"):
        train(job_of(tmp_path / "run"), inputs, Progress())
