"""Independent items on all workers: the largest first, each near its data while its home is free.

Every worker has one item at a time, with a deadline. The item of a worker that dies goes to another
one; a worker that the cluster gains joins in.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.cluster import Actor, result
from schemas.errors import WorkerDiedError, WorkerError

ATTEMPTS = 3


@dataclass
class Task:
    """One item: a method of a worker with its arguments; `then` sees its result and may add tasks.

    `home` is the worker that holds what it needs; a task that is `pinned` runs there or nowhere.
    """

    what: str
    method: str
    arguments: tuple[Any, ...]
    then: Callable[[Any], Iterable["Task"] | None]
    cost: int = 0
    home: Actor | None = None
    pinned: bool = False
    attempts: int = 0


class Pool:
    """The workers of a run that are alive. `seconds` counts what each was busy with items."""

    def __init__(self, workers: list[Actor], timeout_s: float, warn: Callable[[str], None]) -> None:
        self.workers = list(workers)
        self._timeout_s = timeout_s
        self._warn = warn
        self._joining: dict[Any, Actor] = {}
        self.invited = 0
        self.seconds: dict[Actor, float] = {}

    def invite(self, worker: Actor, ready: Any) -> None:
        """Let a worker take items as soon as `ready` is there."""
        self._joining[ready] = worker
        self.invited += 1

    def run(self, tasks: Iterable[Task]) -> None:
        """Run every task, and those that follow from them.

        Raises the worker's own CompressorError; WorkerError where an item fails in another way,
        misses its deadline, or loses its worker ATTEMPTS times.
        """
        waiting = sorted(tasks, key=lambda task: -task.cost)
        running: dict[Any, tuple[Actor, Task, float]] = {}
        self.seconds = dict.fromkeys(self.workers, 0.0)
        while waiting or running:
            busy = {worker for worker, _, _ in running.values()}
            for worker in [worker for worker in self.workers if worker not in busy]:
                if task := _next(waiting, worker):
                    waiting.remove(task)
                    call = getattr(worker, task.method).remote(*task.arguments)
                    running[call] = (worker, task, time.monotonic())
            if not running:
                raise WorkerError(f"{waiting[0].what}: no worker is left; start again")
            for reference in self._ready(running):
                if reference in self._joining:
                    self._join(reference)
                    continue
                worker, task, start = running.pop(reference)
                self.seconds[worker] += time.monotonic() - start
                try:
                    found = result(reference, task.what, self._timeout_s)
                except WorkerDiedError as error:
                    waiting.insert(0, self._reassign(worker, task, error))
                    continue
                waiting += task.then(found) or ()
                waiting.sort(key=lambda task: -task.cost)

    def each(self, method: str) -> list[Any]:
        """The result of a method of every worker; one that died is left out from now on."""
        calls = {getattr(worker, method).remote(): worker for worker in self.workers}
        found = []
        for reference, worker in calls.items():
            try:
                found.append(result(reference, method, self._timeout_s))
            except WorkerDiedError:
                self._lose(worker)
        return found

    def _ready(self, running: dict[Any, tuple[Actor, Task, float]]) -> list[Any]:
        _, oldest, start = min(running.values(), key=lambda entry: entry[2])
        left = start + self._timeout_s - time.monotonic()
        ready, _ = ray.wait(
            [*running, *self._joining], num_returns=1, timeout=max(left, 0), fetch_local=False
        )
        if not ready:
            raise WorkerError(
                f"{oldest.what}: not finished within {self._timeout_s:g} s; start again, or raise "
                "cluster.item_timeout_s"
            )
        return list(ready)

    def _reassign(self, worker: Actor, task: Task, error: WorkerDiedError) -> Task:
        self._lose(worker)
        task.attempts += 1
        if task.pinned or task.attempts == ATTEMPTS or not self.workers:
            raise error
        return task

    def _lose(self, worker: Actor) -> None:
        self.workers.remove(worker)
        self._warn(f"a worker died; going on with {len(self.workers)}")

    def _join(self, reference: Any) -> None:
        worker = self._joining.pop(reference)
        try:
            result(reference, "start of a worker", self._timeout_s)
        except WorkerDiedError:
            return  # a node that came and went
        self.workers.append(worker)
        self.seconds[worker] = 0.0


def _next(waiting: list[Task], worker: Actor) -> Task | None:
    """The largest task whose home this is, else the largest that may run anywhere."""
    mine = (task for task in waiting if task.home == worker)
    anyones = (task for task in waiting if not task.pinned)
    return next(mine, None) or next(anyones, None)
