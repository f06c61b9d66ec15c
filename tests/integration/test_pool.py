"""Independent items on all workers: order, homes, deaths, deadlines, and workers that join."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from pipeline.pool import ATTEMPTS, Pool, Task
from schemas.errors import ConfigError, WorkerDiedError, WorkerError


@ray.remote(num_cpus=0)
class Worker:
    """Says who it is, dies, hangs or fails when asked to."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def work(self, item: str) -> tuple[str, str]:
        return self._name, item

    def meet(self, folder: Path, count: int) -> tuple[str, str]:
        """Return once `count` workers are here: so each of them has taken an item."""
        (folder / self._name).touch()
        while len(list(folder.iterdir())) < count:
            pass
        return self._name, "met"

    def die(self, unless: str) -> tuple[str, str]:
        if self._name != unless:
            os._exit(1)
        return self._name, "survived"

    def hang(self) -> None:
        while True:
            pass

    def refuse(self) -> None:
        raise ConfigError("the worker's own words")


def ignore(message: str) -> None:
    """For tests that do not look at what is said."""


@pytest.fixture
def workers(local_ray: None) -> Iterator[list[Any]]:
    found = [Worker.remote(name) for name in ("one", "two")]  # type: ignore[attr-defined]
    yield found
    for worker in found:
        ray.kill(worker)


def test_one_worker_takes_the_largest_first(workers: list[Any]) -> None:
    seen: list[str] = []
    items = {"small": 1, "large": 9, "middle": 5}
    pool = Pool(workers[:1], 60, ignore)
    pool.run(
        Task(name, "work", (name,), lambda found: seen.append(found[1]), cost=cost)
        for name, cost in items.items()
    )
    assert seen == ["large", "middle", "small"]


def test_a_worker_prefers_its_own_and_takes_another_one_when_free(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    homes = {"a": 0, "b": 0, "c": 1}
    Pool(workers, 60, ignore).run(
        Task(name, "work", (name,), seen.append, home=workers[home], pinned=True)
        for name, home in homes.items()
    )
    assert sorted(seen) == [("one", "a"), ("one", "b"), ("two", "c")]


def test_free_workers_take_items_of_others(workers: list[Any], tmp_path: Path) -> None:
    """Both items are at home on one worker; neither ends before both workers have one."""
    seen: list[tuple[str, str]] = []
    Pool(workers, 60, ignore).run(
        Task(name, "meet", (tmp_path, 2), seen.append, home=workers[0]) for name in "ab"
    )
    assert sorted(seen) == [("one", "met"), ("two", "met")]


def test_a_result_may_bring_more_tasks(workers: list[Any]) -> None:
    seen: list[str] = []

    def then(found: tuple[str, str]) -> list[Task]:
        seen.append(found[1])
        return [Task("next", "work", (f"{found[1]}+",), then)] if len(found[1]) < 3 else []

    Pool(workers, 60, ignore).run([Task("first", "work", ("a",), then)])
    assert seen == ["a", "a+", "a++"]


def test_the_item_of_a_dead_worker_goes_to_another(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    said: list[str] = []
    pool = Pool(workers, 60, said.append)
    pool.run([Task("item", "die", ("two",), seen.append, home=workers[0])])
    assert seen == [("two", "survived")]
    assert said == ["a worker died; going on with 1"]
    assert pool.workers == workers[1:]


def test_an_item_that_loses_every_worker_is_an_error_with_its_name(workers: list[Any]) -> None:
    third = Worker.remote("three")  # type: ignore[attr-defined]
    pool = Pool([*workers, third], 60, ignore)
    with pytest.raises(WorkerDiedError, match="the item: a worker died"):
        pool.run([Task("the item", "die", ("nobody",), lambda _: None)])
    assert len(pool.workers) == 3 - ATTEMPTS


def test_a_pinned_item_dies_with_its_home(workers: list[Any]) -> None:
    pool = Pool(workers, 60, ignore)
    with pytest.raises(WorkerDiedError, match="here alone"):
        pool.run([Task("here alone", "die", ("two",), lambda _: None, 0, workers[0], True)])


def test_a_worker_that_died_between_items_is_left_out(workers: list[Any]) -> None:
    pool = Pool(workers, 60, ignore)
    assert pool.each("name") == ["one", "two"]
    with pytest.raises(RayActorError):
        ray.get(workers[0].die.remote("nobody"), timeout=60)
    assert pool.each("name") == ["two"]
    assert pool.workers == workers[1:]


def test_a_hung_item_misses_its_deadline(workers: list[Any]) -> None:
    with pytest.raises(WorkerError, match=r"the item: not finished within 1 s.*item_timeout_s"):
        Pool(workers, 1, ignore).run([Task("the item", "hang", (), lambda _: None)])


def test_a_worker_keeps_its_own_words(workers: list[Any]) -> None:
    with pytest.raises(ConfigError, match="the worker's own words"):
        Pool(workers, 60, ignore).run([Task("item", "refuse", (), lambda _: None)])


def test_an_invited_worker_joins(workers: list[Any], tmp_path: Path) -> None:
    """Two items that must meet: one worker alone would never end."""
    seen: list[tuple[str, str]] = []
    pool = Pool(workers[:1], 60, ignore)
    pool.invite(workers[1], workers[1].work.remote("hello"))
    pool.run(Task(name, "meet", (tmp_path, 2), seen.append) for name in "ab")
    assert sorted(seen) == [("one", "met"), ("two", "met")]


def test_an_invited_worker_that_never_comes_changes_nothing(workers: list[Any]) -> None:
    seen: list[tuple[str, str]] = []
    pool = Pool(workers[:1], 60, ignore)
    pool.invite(workers[1], workers[1].die.remote("nobody"))
    pool.run(Task(name, "work", (name,), seen.append) for name in "abc")
    assert len(seen) == 3
