"""Independent items on all workers: order, homes, deaths, deadlines, and workers that join."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from pipeline.cluster.pool import ATTEMPTS, Pool, Task
from schemas.errors import (
    ConfigError,
    NumericsError,
    QuarantineError,
    StorageFullError,
    WorkerDiedError,
)
from schemas.metrics import Metric
from tests.integration.pool_worker import Broken, Worker


def ignore(message: str) -> None:
    """For tests that do not look at what is said."""


@pytest.fixture
def workers(local_ray: None) -> Iterator[list[Any]]:
    found = [Worker.remote(name) for name in ("one", "two")]  # type: ignore[attr-defined]
    yield found
    for worker in found:
        ray.kill(worker)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[Metric]:
    """What the metrics are told."""
    found: Counter[Metric] = Counter()

    def count(metric: Metric, **labels: str) -> None:
        assert labels.keys() == set(metric.labels)
        found[metric] += 1

    monkeypatch.setattr("pipeline.cluster.pool.count", count)
    return found


def test_one_worker_takes_the_largest_first(workers: list[Any]) -> None:
    seen: list[str] = []
    items = {"small": 1, "large": 9, "middle": 5}
    pool = Pool(workers[:1], 600, ignore)
    pool.run(
        Task(name, "work", (name,), lambda found: seen.append(found[1]), cost=cost)
        for name, cost in items.items()
    )
    assert seen == ["large", "middle", "small"]


def test_a_worker_prefers_its_own_and_takes_another_one_when_free(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    homes = {"a": 0, "b": 0, "c": 1}
    Pool(workers, 600, ignore).run(
        Task(name, "work", (name,), seen.append, home=workers[home], pinned=True)
        for name, home in homes.items()
    )
    assert sorted(seen) == [("one", "a"), ("one", "b"), ("two", "c")]


def test_free_workers_take_items_of_others(workers: list[Any], tmp_path: Path) -> None:
    """Both items are at home on one worker; neither ends before both workers have one."""
    seen: list[tuple[str, str]] = []
    Pool(workers, 600, ignore).run(
        Task(name, "meet", (tmp_path, 2), seen.append, home=workers[0]) for name in "ab"
    )
    assert sorted(seen) == [("one", "met"), ("two", "met")]


def test_a_result_may_bring_more_tasks(workers: list[Any]) -> None:
    seen: list[str] = []

    def then(found: tuple[str, str]) -> list[Task]:
        seen.append(found[1])
        return [Task("next", "work", (f"{found[1]}+",), then)] if len(found[1]) < 3 else []

    Pool(workers, 600, ignore).run([Task("first", "work", ("a",), then)])
    assert seen == ["a", "a+", "a++"]


def test_the_item_of_a_dead_worker_goes_to_another(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    said: list[str] = []
    pool = Pool(workers, 600, said.append)
    pool.run([Task("item", "die", ("two",), seen.append, home=workers[0])])
    assert seen == [("two", "survived")]
    [line] = said
    assert line.startswith("item: a worker died (ActorDiedError: ")
    assert line.endswith("; going on with 1")
    assert pool.workers == workers[1:]


def test_an_item_that_loses_every_worker_is_given_up_by_name(workers: list[Any]) -> None:
    """The others go on to their end, with the workers that replace those it cost."""
    seen: list[tuple[str, str]] = []
    others = [Worker.remote(name) for name in ("three", "four")]  # type: ignore[attr-defined]
    pool = Pool(workers, 600, ignore)

    def replace() -> None:
        if others:
            pool.invite(others[0], others.pop(0).name.remote(), 60)

    pool.replace = replace
    pool.run(
        [
            Task("the item", "die", ("nobody",), seen.append, cost=9, matrices=("q",)),
            *(Task(name, "work", (name,), seen.append) for name in "abc"),
        ]
    )
    assert sorted(item for _, item in seen) == ["a", "b", "c"]
    assert len(pool.members) == 4 - ATTEMPTS
    assert pool.quarantine.matrices.keys() == {"q"}
    with pytest.raises(QuarantineError, match=r"the item: 3 times, the last: .*a worker died"):
        pool.quarantine.require()
    pool.run([Task("the item", "work", ("again",), seen.append)])
    assert len(seen) == 3  # it stays given up


def test_without_a_worker_nothing_goes_on(workers: list[Any]) -> None:
    tasks = [Task(name, "die", ("nobody",), lambda _: None) for name in ("one", "two")]
    with pytest.raises(WorkerDiedError, match="no worker is left"):
        Pool(workers[:1], 600, ignore).run(tasks)


def test_a_pinned_item_dies_with_its_home(workers: list[Any]) -> None:
    pool = Pool(workers, 600, ignore)
    with pytest.raises(WorkerDiedError, match="here alone"):
        pool.run([Task("here alone", "die", ("two",), lambda _: None, 0, workers[0], True)])


def test_a_pinned_item_whose_home_died_with_another_item_is_not_waited_for(
    workers: list[Any],
) -> None:
    tasks = [
        Task("first", "die", ("two",), lambda _: None, 9, workers[0]),
        Task("here alone", "work", ("a",), lambda _: None, 1, workers[0], True),
    ]
    with pytest.raises(WorkerDiedError, match="here alone: the worker that held what it needs"):
        Pool(workers, 600, ignore).run(tasks)


def test_a_worker_that_died_between_items_is_left_out(workers: list[Any]) -> None:
    pool = Pool(workers, 600, ignore)
    assert pool.each("name") == ["one", "two"]
    with pytest.raises(RayActorError):
        ray.get(workers[0].die.remote("nobody"))
    assert pool.each("name") == ["two"]
    assert pool.workers == workers[1:]


def test_a_hung_item_goes_to_another_worker_and_its_own_is_killed(
    workers: list[Any], counted: Counter[Metric], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is stopped, so it could not even answer that it is to end. The other worker takes
    item after item meanwhile, each a second, for longer than one deadline.
    """
    seen: list[tuple[str, str]] = []
    said: list[str] = []
    clock = SimpleNamespace(monotonic=lambda: len(seen))
    monkeypatch.setattr("pipeline.cluster.pool.time", clock)
    ray.get([worker.name.remote() for worker in workers])  # they have started
    pool = Pool(workers, 12, said.append)
    again = [Task(f"{i}", "work", ("again",), seen.append, home=workers[1]) for i in range(14)]
    pool.run([Task("the item", "stop", ("two",), seen.append, 15, workers[0]), *again])
    assert sorted(set(seen)) == [("two", "again"), ("two", "went on")]
    assert len(seen) == 15
    assert said == [
        "the item: not finished within 12 s, so its worker was killed; raise "
        "cluster.item_timeout_s if that is too short; going on with 1"
    ]
    assert counted == {Metric.LOST_WORKERS: 1, Metric.RETRIES: 1}
    with pytest.raises(RayActorError):
        ray.get(workers[0].name.remote())


def test_a_failed_item_is_tried_again_on_another_worker(
    workers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.pool.BACK_OFF_S", 0.01)
    seen: list[tuple[str, str]] = []
    said: list[str] = []
    task = Task("the item", "fail", ("two", "storage"), seen.append, home=workers[0])
    Pool(workers, 600, said.append).run([task])
    assert seen == [("two", "succeeded")]
    assert said == ["the storage does not answer; trying again in 0.01 s"]


@pytest.mark.parametrize(("how", "attempts"), [("bug", ATTEMPTS), ("storage", 3), ("numbers", 1)])
def test_what_fails_everywhere_is_given_up_and_the_others_go_on(
    workers: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    counted: Counter[Metric],
    how: str,
    attempts: int,
) -> None:
    """Once if it would fail the same way again."""
    monkeypatch.setattr("pipeline.cluster.pool.BACK_OFF_S", 0.01)
    seen: list[tuple[str, str]] = []
    pool = Pool(workers, 600, ignore)
    bad = Task("the item", "fail", ("nobody", how), seen.append, cost=9, matrices=("q",))
    pool.run([bad, *(Task(name, "work", (name,), seen.append) for name in "abcd")])
    assert sorted(item for _, item in seen) == ["a", "b", "c", "d"]
    given_up = pool.quarantine.items["the item"]
    assert (given_up.attempts, given_up.of_storage) == (attempts, how == "storage")
    assert (counted[Metric.RETRIES], counted[Metric.QUARANTINED]) == (attempts - 1, 1)
    assert len(pool.workers) == 2


def test_of_a_group_that_fails_only_the_member_at_fault_is_given_up(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []

    def parts() -> list[Task]:
        good = Task("good", "work", ("good",), seen.append, matrices=("g",))
        return [good, Task("bad", "fail", ("nobody", "numbers"), seen.append, matrices=("b",))]

    pool = Pool(workers, 600, ignore)
    group = Task("both", "fail", ("nobody", "numbers"), seen.append, matrices=("g", "b"))
    group.split = parts
    pool.run([group])
    assert [item for _, item in seen] == ["good"]
    assert pool.quarantine.matrices == {"b": "it is not finite"}


@pytest.mark.parametrize(("how", "error"), [("full", StorageFullError), ("numbers", NumericsError)])
def test_a_full_disk_or_numbers_of_no_matrix_end_the_run_at_once(
    workers: list[Any], how: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"the disk is full|it is not finite"):
        Pool(workers, 600, ignore).run([Task("item", "fail", ("nobody", how), lambda _: None)])


def test_a_worker_keeps_its_own_words(workers: list[Any]) -> None:
    with pytest.raises(ConfigError, match="the worker's own words"):
        Pool(workers, 600, ignore).run([Task("item", "refuse", (), lambda _: None)])


def test_an_item_that_goes_on_counts_to_each_run_with_its_part(
    workers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pipeline.cluster.pool.time", SimpleNamespace(monotonic=lambda: clock.now))
    pool = Pool(workers, 600, ignore)
    later = Task("later", "meet", (tmp_path, 2), lambda _: None, home=workers[0], later=True)
    awaited = Task("now", "work", ("a",), lambda _: setattr(clock, "now", 10.0), home=workers[1])
    pool.run([later, awaited])
    assert pool.seconds == {workers[0]: 10.0, workers[1]: 0.0}
    (tmp_path / "other").touch()
    clock.now = 100.0
    pool.finish()
    assert pool.seconds == dict.fromkeys(workers, 0.0)


def test_an_invited_worker_joins(workers: list[Any], tmp_path: Path) -> None:
    """Two items that must meet: one worker alone would never end."""
    seen: list[tuple[str, str]] = []
    pool = Pool(workers[:1], 600, ignore)
    pool.invite(workers[1], workers[1].work.remote("hello"), 600)
    pool.run(Task(name, "meet", (tmp_path, 2), seen.append) for name in "ab")
    assert sorted(seen) == [("one", "met"), ("two", "met")]


def test_an_invited_worker_that_never_comes_changes_nothing(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    pool = Pool(workers[:1], 600, ignore)
    pool.invite(workers[1], workers[1].die.remote("nobody"), 600)
    pool.run(Task(name, "work", (name,), seen.append) for name in "abc")
    assert len(seen) == 3


@pytest.mark.parametrize("why", ["the worker's own words", "no module of that name"])
def test_an_invited_worker_that_cannot_take_part_is_ended(workers: list[Any], why: str) -> None:
    """Its node does not see the model, is of another kind, or lacks a library."""
    seen: list[tuple[str, str]] = []
    said: list[str] = []
    pool = Pool(workers[:1], 600, said.append)
    other = workers[1] if why.startswith("the worker") else Broken.remote()  # type: ignore[attr-defined]
    ready = other.refuse.remote()
    ray.wait([ready])
    pool.invite(other, ready, 600)
    pool.run(Task(name, "work", (name,), seen.append) for name in "abcdef")
    assert seen == [("one", name) for name in "abcdef"]
    assert pool.members == workers[:1]
    [told] = said
    assert why in told
    assert told.endswith("; going on without that worker")
    with pytest.raises(RayActorError):
        ray.get(other.refuse.remote())
