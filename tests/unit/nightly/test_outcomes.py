"""Failures, kills, other nights and the gate: what becomes of each checkpoint."""

import pytest

from pipeline import metrics
from pipeline.nightly.ledger import ledger_of
from pipeline.nightly.night import nightly
from pipeline.run_directory.ownership import owned
from schemas.errors import (
    ClusterError,
    ConfigError,
    DiskError,
    NodesError,
    NumericsError,
    OwnershipError,
    StorageFullError,
    TextError,
    WorkerError,
)
from schemas.request.config import RunConfig
from schemas.request.nightly import CatalogRow, Event
from schemas.result.manifest import RunResult
from tests.nights import kill, pointed
from tests.unit.nightly.conftest import Training, did
from workers.storage.keys import OWNER
from workers.storage.places import folders_in, write

LOOP = "The city lies on the river" + " and on" * 20


# --- failures, kills, other nights --------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [NumericsError("q_proj: not finite"), FileNotFoundError("gone while it was read")]
)
def test_a_failing_checkpoint_keeps_no_other_from_being_done(
    training: Training, error: Exception
) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.compress.failures["checkpoint-3"] = error
    night = training.night(max=2)
    assert did(night) == [
        *(("started", "3"), ("failed", "3")),
        *(("started", "2"), ("published", "2")),
    ]
    assert did(training.night(max=1)) == [("started", "1"), ("published", "1")]  # 3 comes last
    assert did(training.night(max=1)) == [("started", "3"), ("failed", "3")]


def test_one_that_always_fails_is_put_in_quarantine_and_named_until_retried(
    training: Training,
) -> None:
    training.step(1)
    training.compress.failures["checkpoint-1"] = WorkerError("out of memory")
    assert did(training.night(attempts=2))[-1] == ("failed", "1")
    assert did(training.night(attempts=2))[-1] == ("quarantined", "1")
    for _ in range(2):
        night = training.night(attempts=2)
        assert did(night) == []
        assert night.quarantined == {"checkpoint-1": "out of memory"}
    del training.compress.failures["checkpoint-1"]
    night = training.night(attempts=2, retry=("checkpoint-1",))
    assert did(night) == [("retry", "1"), ("started", "1"), ("published", "1")]
    assert night.quarantined == {}


def test_retry_of_what_was_never_tried_is_refused(training: Training) -> None:
    with pytest.raises(ConfigError, match="never tried"):
        training.night(retry=("checkpoint-9",))


def test_a_killed_night_is_gone_on_with_in_the_same_places(training: Training) -> None:
    folder = training.step(1)
    kill(training.compress, training.night)
    assert training.events() == [("started", "1")]
    (run,) = folders_in(training.prefix / "runs")
    folder.rename(training.source / "renamed-2")
    training.night()
    assert training.events()[1:] == [
        ("duplicate", "renamed-2"),
        *[(event, "renamed-2") for event in ("started", "published")],
    ]
    assert folders_in(training.prefix / "checkpoints") == [run]
    assert folders_in(training.prefix / "runs") == []


def test_one_that_kills_every_night_is_put_in_quarantine(training: Training) -> None:
    training.step(1)
    for _ in range(3):
        kill(training.compress, training.night)
    night = training.night()
    assert did(night) == [("quarantined", "1")]
    assert night.quarantined == {"checkpoint-1": "3 attempts, the last one was killed"}


@pytest.mark.parametrize(
    ("events", "failed"),
    [
        (["failed", "started", "stopped"], True),  # it still comes last
        (["started", "stopped"], False),
        (["failed", "started", "published", "started", "stopped"], False),
        (["failed", "retry", "started", "stopped"], False),
    ],
)
def test_a_night_that_is_stopped_leaves_a_checkpoint_as_it_was(
    events: list[Event], failed: bool
) -> None:
    rows = [
        CatalogRow(event=event, name="c", order="1", key="k", folder="c", detail="why", ratio=0.2)
        for event in ["started", *events]
    ]
    assert ledger_of(rows)["k"].failed == failed


@pytest.mark.parametrize(
    "error",
    [
        *(StorageFullError("full"), DiskError("no room"), TextError("gone")),
        *(ClusterError("no Ray there"), NodesError("no GPU is left"), KeyboardInterrupt),
    ],
)
def test_what_is_not_its_fault_ends_the_night_and_does_not_count(
    training: Training, error: BaseException | type[BaseException]
) -> None:
    training.step(1)

    def fail(_: str) -> None:
        raise error

    training.compress.during = fail
    for _ in range(4):
        with pytest.raises(error if isinstance(error, type) else type(error)):
            training.night(attempts=2)
    assert {row.event for row in training.rows} == {"started", "stopped"}
    training.compress.during = lambda _: None
    assert did(training.night(attempts=2)) == [("started", "1"), ("published", "1")]


def test_an_unforeseen_error_ends_the_night_and_counts(training: Training) -> None:
    training.step(1)

    def fail(_: str) -> None:
        raise KeyError("rope_type")

    training.compress.during = fail
    for _ in range(2):
        with pytest.raises(KeyError):
            training.night(attempts=2)
    night = training.night(attempts=2)
    assert night.quarantined == {"checkpoint-1": "KeyError: 'rope_type'"}


def test_a_pointer_that_a_killed_night_did_not_move_is_moved_by_the_next(
    training: Training,
) -> None:
    training.step(1)
    training.night()
    (training.prefix / "latest.json").unlink()
    training.night()
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}


def test_of_two_nights_at_once_the_second_does_nothing(training: Training) -> None:
    training.step(1)
    with (
        owned(training.prefix / OWNER, lambda _: None),
        pytest.raises(OwnershipError, match="is at work"),
    ):
        training.night()
    assert training.rows == []
    assert training.compress.asked == []


def test_a_night_that_lost_its_place_writes_nothing(training: Training) -> None:
    training.step(1)
    training.compress.during = lambda _: write(training.prefix / OWNER / "2.json", b"{}")
    with pytest.raises(OwnershipError, match="has taken it"):
        training.night()
    assert training.events() == [("started", "1")]
    assert pointed(training.prefix) == {}


# --- the gate ----------------------------------------------------------------------------------


def test_what_does_not_pass_the_gate_is_kept_but_not_published(training: Training) -> None:
    training.step(1)
    training.night(gate={"perplexity": "5%"})
    training.step(2)
    training.compress.increases["checkpoint-2"] = 0.5
    night = training.night(gate={"perplexity": "5%"})
    assert did(night) == [("started", "2"), ("rejected", "2")]
    assert night.rows[-1].detail == "perplexity 20 -> 30 (+50.00%, allowed +5.00%)"
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}
    assert did(training.night(gate={"perplexity": "5%"})) == []
    training.night(gate={"perplexity": "60%"}, retry=("checkpoint-2",))
    assert pointed(training.prefix) == {"0.20": "checkpoint-2"}
    assert len(training.compress.made) == 2


def test_each_ratio_passes_or_not_by_itself(training: Training) -> None:
    training.step(1)
    judged = iter([0.01, 0.5])

    class Worse(dict[str, float]):
        def get(self, *_: object) -> float:
            return next(judged)

    training.compress.increases = Worse()
    training.night(ratio="0.2,0.4", gate={"perplexity": 0.05})
    assert [row.event for row in training.rows] == ["started", "published", "rejected"]
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}


def test_what_is_there_is_judged_although_another_ratio_fails(training: Training) -> None:
    training.step(1)

    def compress(config: RunConfig) -> RunResult:
        training.compress(config.model_copy(update={"ratio": config.ratio[:2]}))
        raise NumericsError("q_proj: not finite at 0.6")

    asked = training.config(ratio="0.2,0.4,0.6", gate={"perplexity": 0.05}, attempts=1)
    night = nightly(asked, compress)
    events = ["started", "published", "published", "failed"]
    assert [row.event for row in night.rows] == events
    assert set(pointed(training.prefix)) == {"0.20", "0.40"}
    training.night(ratio="0.2,0.4,0.6", gate={"perplexity": 0.05})
    assert training.compress.asked[1:] == [("checkpoint-1", (0.6,))]


def test_what_became_of_each_is_counted(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.compress.failures["checkpoint-1"] = NumericsError("q_proj: not finite")
    training.compress.increases["checkpoint-2"] = 0.5
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_nightly", counted.append)
    training.night(gate={"perplexity": "5%"})
    assert counted == ["succeeded", "rejected", "failed"]


def test_a_degenerate_continuation_is_rejected(training: Training) -> None:
    training.step(1)
    training.compress.samples["checkpoint-1"] = LOOP
    night = training.night(gate={"perplexity": 1.0})
    assert night.rows[-1].detail == "degenerate generation: 'on and' again and again"


def test_a_gate_without_a_text_is_refused_before_any_work(training: Training) -> None:
    training.step(1)
    with pytest.raises(ConfigError, match="no text to evaluate on; name one with --evaluate"):
        training.night(gate={"perplexity": 0.05}, evaluation={})
    assert not training.prefix.exists()
