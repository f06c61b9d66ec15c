"""progress.json: what a run does, and about how long it still takes."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.progress import Progress
from pipeline.run_directory import journal as journals
from pipeline.run_directory.journal import journal, planned, seconds_left
from schemas.errors import RunError
from schemas.run.record import Activity
from schemas.run.stages import StageName

PLAN: Any = SimpleNamespace(
    stages=[
        SimpleNamespace(name=name, total=total)
        for name, total in {"load": 10.0, "factorise": 100.0, "verify": 20.0, "start": None}.items()
    ],
    waves=[()],
    cuts=1,
)


def read(root: Path) -> Activity:
    return Activity.model_validate_json((root / "progress.json").read_bytes())


def stage(name: str, done: int, elapsed: float) -> Any:
    return cast(Any, SimpleNamespace(name=name, done=done, total=100, elapsed=elapsed))


@pytest.mark.parametrize(
    ("spent", "now", "left"),
    [
        ({}, stage("load", 50, 4.0), 4.0 + 120.0),
        ({"load": 20.0}, stage("factorise", 25, 50.0), 150.0 + 40.0),  # twice as slow as planned
        ({"load": 20.0}, stage("factorise", 0, 50.0), 150.0 + 40.0),
        ({"load": 20.0}, stage("factorise", 0, 500.0), 40.0),
        ({"load": 10.0, "factorise": 100.0}, stage("verify", 100, 7.0), 0.0),
        ({}, stage("verify", 50, 7.0), 7.0),  # what is finished already is skipped
    ],
)
def test_what_is_left_is_told_by_the_plan_and_the_pace_so_far(
    spent: dict[StageName, float], now: Any, left: float
) -> None:
    ended = {name: [seconds] for name, seconds in spent.items()}
    assert seconds_left(planned(PLAN), ended, now) == pytest.approx(left)


@pytest.mark.parametrize(
    ("ended", "now", "left"),
    [
        ({"load": 1}, stage("factorise", 50, 12.5), 12.5 + 3 * 25.0 + 7.5 + 40.0),
        ({"load": 2, "factorise": 1}, stage("factorise", 0, 0.0), 3 * 25.0 + 5.0 + 40.0),
        ({"load": 2}, stage("factorise", 0, 0.0), 4 * 25.0 + 5.0 + 40.0),  # a resumed run
        ({"load": 4, "factorise": 4}, stage("verify", 0, 0.0), 40.0),
        ({"load": 4, "factorise": 4, "verify": 1}, stage("verify", 50, 10.0), 10.0),
        ({"load": 9, "factorise": 4, "verify": 1}, stage("load", 50, 1.0), 1.0 + 20.0),
    ],
)
def test_waves_and_ratios_that_are_to_come_count(
    ended: dict[StageName, int], now: Any, left: float
) -> None:
    """Four waves and two ratios, exactly on plan."""
    plan: Any = SimpleNamespace(
        stages=[
            SimpleNamespace(name=name, total=total)
            for name, total in {"load": 10.0, "factorise": 100.0, "verify": 40.0}.items()
        ],
        waves=[()] * 4,
        cuts=2,
    )
    found = planned(plan)
    seconds = {
        name: [
            found[name].seconds / found[name].times if at < found[name].times else 0.0
            for at in range(count)
        ]
        for name, count in ended.items()
    }
    assert seconds_left(found, seconds, now) == pytest.approx(left)


def test_some_stages_run_more_often_than_waves_or_ratios() -> None:
    names = ("load", "calibrate backward", "recover", "verify", "evaluate", "teach")
    plan: Any = SimpleNamespace(
        stages=[SimpleNamespace(name=name, total=60.0) for name in names], waves=[()] * 3, cuts=2
    )
    assert {name: found.times for name, found in planned(plan).items()} == {
        "load": 5,
        "calibrate backward": 3,
        "recover": 2,
        "verify": 2,
        "evaluate": 3,
        "teach": 1,
    }


def test_without_a_plan_only_a_stage_under_way_says_how_long() -> None:
    assert seconds_left({}, {}, stage("load", 0, 3.0)) is None
    assert seconds_left({}, {}, stage("load", 25, 3.0)) == pytest.approx(9.0)


def test_each_stage_is_written_when_it_begins(tmp_path: Path) -> None:
    progress = Progress()
    with journal(tmp_path, PLAN, progress):
        with progress.stage("load", 3, "shards") as load:
            assert (read(tmp_path).stage, read(tmp_path).done) == ("load", 0)
            load.advance()
            assert read(tmp_path).done == 0  # not at every item
        progress.warn("a worker died; going on with 1")
        with progress.stage("factorise", 8, "windows"):
            found = read(tmp_path)
    assert (found.stage, found.total, found.unit) == ("factorise", 8, "windows")
    assert found.warnings == ("a worker died; going on with 1",)
    assert found.spent.keys() == {"load", "factorise"}
    assert found.left is not None
    assert found.error is None


def test_a_stage_is_written_again_as_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "EVERY_S", 0.0)
    progress = Progress()
    with journal(tmp_path, PLAN, progress), progress.stage("factorise", 8, "windows") as stage:
        stage.advance(2, tokens=100)
        assert (read(tmp_path).done, read(tmp_path).tokens_per_second is None) == (2, False)


def test_the_end_is_written(tmp_path: Path) -> None:
    progress = Progress()
    with journal(tmp_path, PLAN, progress), progress.stage("verify", 1, "checkpoint") as stage:
        stage.advance()
    found = read(tmp_path)
    assert (found.done, found.total, found.left, found.error) == (1, 1, 0.0, None)
    assert found.spent == progress.seconds


def test_a_failure_stays(tmp_path: Path) -> None:
    progress = Progress()
    with (
        pytest.raises(RunError),
        journal(tmp_path, PLAN, progress),
        progress.stage("verify", 8, "y"),
    ):
        raise RunError("a worker died")
    assert (read(tmp_path).stage, read(tmp_path).error) == ("verify", "a worker died")


def test_an_error_of_the_system_stays_too(tmp_path: Path) -> None:
    progress = Progress()
    with (
        pytest.raises(InterruptedError),
        journal(tmp_path, PLAN, progress),
        progress.stage("load", 8, "shards"),
    ):
        raise InterruptedError(errno.EINTR, "a file of the network was lost")
    assert read(tmp_path).error == "[Errno 4] a file of the network was lost"


def test_a_run_goes_on_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    progress = Progress()
    with journal(tmp_path / "file", PLAN, progress), progress.stage("load", 1, "shards") as stage:
        stage.advance()
    assert progress.seconds.keys() == {"load"}
