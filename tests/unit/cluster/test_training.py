"""What a driver that was killed has left of Ray Train's states."""

import json
from pathlib import Path

import pytest

from pipeline.cluster.training import _tidy
from pipeline.progress import Progress


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
