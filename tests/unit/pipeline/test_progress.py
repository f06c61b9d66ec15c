"""What a stage says of its speed."""

import logging

import pytest
from rich.console import Console

from pipeline.progress import Progress
from schemas.errors import RunError
from workers.process.logs import log


def test_what_precedes_the_tokens_of_a_stage_takes_no_part_in_their_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now)
    with Progress().stage("recover", 3, "steps") as stage:
        now = 100.0
        stage.advance()  # a layer that was refined
        now = 110.0
        stage.advance(1, tokens=50)
        now = 120.0
        stage.advance(1, tokens=50)
        assert stage.tokens_per_second == 5.0
        assert stage.elapsed == 120.0


def test_the_time_of_a_stage_that_failed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, progress = 0.0, Progress()
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now)

    def lose_a_worker() -> None:
        nonlocal now
        with progress.stage("calibrate forward", 8, "windows"):
            now = 90.0
            raise RunError("a worker died")

    with pytest.raises(RunError):
        lose_a_worker()
    with progress.stage("calibrate forward", 8, "windows") as stage:
        now = 100.0
        stage.busy = [5.0]
    assert progress.seconds == {"calibrate forward": 100.0}
    assert progress.ended == {"calibrate forward": [10.0]}  # which alone says how fast it is
    assert progress.busy == {"calibrate forward": (0.5,)}


def test_where_no_bar_can_be_drawn_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.progress._LOG_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, log.name)
    dumb = Console(force_terminal=True, _environ={"TERM": "dumb"})
    with Progress(dumb).stage("load", 2, "shards") as stage:
        stage.advance()
    assert "load: 1/2 shards" in caplog.messages


def test_what_begins_anew_has_no_times_of_the_run_before() -> None:
    progress = Progress()
    with progress.stage("recover", 1, "steps"):
        progress.warn("slow")
    seconds = progress.seconds
    progress.begin()
    assert (progress.seconds, progress.ended, progress.busy, progress.warnings) == ({}, {}, {}, [])
    assert seconds.keys() == {"recover"}  # of the result that was made of them
