"""Runs independent items on all workers: largest first, near their data while its home is free.

Every worker has one item at a time, each with its own deadline. If a worker dies, or is killed
because it hangs, its item goes to another one; an item that failed is retried after a while. What
fails ATTEMPTS times is given up, and the others go on. Lost workers are replaced if there is room.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from pipeline.cluster.calls import Actor, result, stop
from pipeline.cluster.quarantine import Failed, Quarantine
from schemas.errors import (
    CompressorError,
    ConfigError,
    DamagedError,
    NumericsError,
    StorageError,
    StorageFullError,
    WorkerDiedError,
    WorkerError,
    WorkerHungError,
)
from schemas.metrics import Metric
from workers.actors.metrics import count
from workers.process.logs import about_matrices

ATTEMPTS = 3
BACK_OFF_S = 1.0  # before the first retry of a failed item; four times as long before the next
_AT_ONCE = (ConfigError, StorageFullError)  # no other item would fare better
_PASSING = (WorkerError, StorageError)  # any other error is the item's fault: retrying cannot help


@dataclass
class Task:
    """One item: a worker's method and its arguments; `then` gets its result and may add tasks.

    `home` is the worker that holds its data; a `pinned` task runs there or nowhere. `matrices` are
    the matrices it is for, if it can be given up for them alone; `split` gives smaller tasks for
    the same work, to tell which of them fails. `later` tasks may go on after the `run` that they
    follow from, until `finish`.
    """

    what: str
    method: str
    arguments: tuple[Any, ...]
    then: Callable[[Any], Iterable["Task"] | None]
    cost: int = 0
    home: Actor | None = None
    pinned: bool = False
    matrices: tuple[str, ...] = ()
    split: Callable[[], list["Task"]] = list
    later: bool = False
    attempts: int = 0
    failed_on: Actor | None = None
    not_before: float = 0.0


class _Call(NamedTuple):
    """An item under way."""

    worker: Actor
    task: Task
    start: float
    end: float


class _Invitation(NamedTuple):
    """A worker that is about to join."""

    worker: Actor
    end: float


class Pool:
    """The live workers of a run. `seconds` counts how long each was busy in the last `run`.

    `replace` is called after a loss; it may `invite` others.
    """

    def __init__(
        self,
        workers: list[Actor],
        timeout_s: float,
        warn: Callable[[str], None],
        quarantine: Quarantine | None = None,
    ) -> None:
        self.workers = list(workers)
        self.quarantine = quarantine or Quarantine(warn)
        self.replace: Callable[[], None] = lambda: None
        self.seconds: dict[Actor, float] = {}
        self._timeout_s = timeout_s
        self._warn = warn
        self._waiting: list[Task] = []
        self._running: dict[Any, _Call] = {}
        self._joining: dict[Any, _Invitation] = {}
        self._losses = 0

    def invite(self, worker: Actor, ready: Any, timeout_s: float) -> None:
        """Let a worker take items as soon as `ready` is ready."""
        self._joining[ready] = _Invitation(worker, time.monotonic() + timeout_s)

    @property
    def members(self) -> list[Actor]:
        """The workers that have joined or are about to."""
        return [*self.workers, *(invited.worker for invited in self._joining.values())]

    def run(self, tasks: Iterable[Task]) -> None:
        """Run the tasks and those that follow from them, except any that may finish `later`; items
        that are given up are in `quarantine`.

        Raises WorkerDiedError if no worker is left, or if a pinned task's worker died. Passes on
        errors that would meet every item (ConfigError, StorageFullError), and a NumericsError of a
        task that is for no matrix, because every later number would be wrong.
        """
        self._waiting += tasks
        self._run(lambda task: not task.later)

    def finish(self) -> None:
        """Run the tasks that earlier runs have left. Raises as `run` does."""
        self._run(lambda task: True)

    def _run(self, awaited: Callable[[Task], bool]) -> None:
        self._waiting = self._order(self._waiting)
        self.seconds = dict.fromkeys(self.workers, 0.0)
        start = time.monotonic()  # what goes on from an earlier run counts from here
        self._running = {ref: call._replace(start=start) for ref, call in self._running.items()}
        self._losses, most = 0, ATTEMPTS * len(self.members)
        while any(map(awaited, self._tasks)):
            lost = self._losses
            self._assign()
            for reference in self._ready():
                if reference in self._joining:
                    self._join(reference)
                else:
                    self._waiting += self._finish(reference, self._running.pop(reference))
            for reference in _overdue(self._running):
                self._waiting += self._kill(self._running.pop(reference))
            for reference in _overdue(self._joining):
                stop([self._joining.pop(reference).worker])
            if lost < self._losses <= most:
                self.replace()
            self._waiting = self._order(self._waiting)
        for call in self._running.values():
            self.seconds[call.worker] += time.monotonic() - call.start

    @property
    def _tasks(self) -> list[Task]:
        """The tasks that wait or are under way."""
        return [*self._waiting, *(call.task for call in self._running.values())]

    def each(self, method: str) -> list[Any]:
        """Call a method of every worker and return the results; drops each worker that died."""
        calls = {getattr(worker, method).remote(): worker for worker in self.workers}
        found = []
        for reference, worker in calls.items():
            try:
                found.append(result(reference, method.replace("_", " "), self._timeout_s))
            except WorkerDiedError as error:
                self._lose(worker, error)
        return found

    def _order(self, tasks: Iterable[Task]) -> list[Task]:
        given_up = self.quarantine.items
        return sorted((t for t in tasks if t.what not in given_up), key=lambda task: -task.cost)

    def _assign(self) -> None:
        waiting, now = self._waiting, time.monotonic()
        busy = {call.worker for call in self._running.values()}
        for worker in [worker for worker in self.workers if worker not in busy]:
            if task := self._next(waiting, worker, now):
                waiting.remove(task)
                call = getattr(worker, task.method).remote(*task.arguments)
                self._running[call] = _Call(worker, task, now, now + self._timeout_s)
        for task in waiting:
            if task.pinned and task.home not in self.workers:
                raise WorkerDiedError(f"{task.what}: the worker that held what it needs died")
        if not self.members:
            raise WorkerDiedError(f"{waiting[0].what}: no worker is left")

    def _next(self, waiting: list[Task], worker: Actor, now: float) -> Task | None:
        """Return the largest task whose home is `worker`, else the largest that may run anywhere.

        A task that failed here waits for another worker, if there is one.
        """
        alone = len(self.workers) == 1
        able = [
            task
            for task in waiting
            if task.not_before <= now and (alone or task.failed_on != worker)
        ]
        mine = (task for task in able if task.home == worker)
        anyones = (task for task in able if not task.pinned)
        return next(mine, None) or next(anyones, None)

    def _ready(self) -> list[Any]:
        """Wait until a call is ready or a deadline or retry is due; return the ready calls."""
        now, calls = time.monotonic(), [*self._running, *self._joining]
        events = [call.end for call in self._running.values()]
        events += [invited.end for invited in self._joining.values()]
        events += [task.not_before for task in self._waiting if task.not_before > now]
        left = max(min(events, default=now) - now, 0)
        if not calls:
            time.sleep(left)
            return []
        ready, _ = ray.wait(calls, num_returns=1, timeout=left, fetch_local=False)
        return list(ready)

    def _finish(self, reference: Any, call: _Call) -> list[Task]:
        """Return the tasks that follow from a call that ended."""
        task = call.task
        self.seconds[call.worker] += time.monotonic() - call.start
        try:
            found = result(reference, task.what, self._timeout_s)
        except CompressorError as error:
            return self._failed(call.worker, task, error)
        return list(task.then(found) or ())

    def _kill(self, call: _Call) -> list[Task]:
        task = call.task
        error = WorkerHungError(
            f"{task.what}: not finished within {self._timeout_s:g} s, so its worker was killed; "
            "raise cluster.item_timeout_s if that is too short"
        )
        return self._failed(call.worker, task, error)

    def _failed(self, worker: Actor, task: Task, error: CompressorError) -> list[Task]:
        """Return the tasks to do instead: the same one again, its parts, or none."""
        task.attempts += 1
        task.failed_on = worker
        if isinstance(error, WorkerDiedError):
            self._lose(worker, error)
        at_once = _AT_ONCE if task.matrices else (*_AT_ONCE, NumericsError)
        if task.pinned or isinstance(error, at_once):
            raise error
        passing = isinstance(error, _PASSING) and not isinstance(error, DamagedError)
        if task.attempts < ATTEMPTS and passing:
            if not isinstance(error, WorkerDiedError):
                delay = BACK_OFF_S * 4 ** (task.attempts - 1)
                task.not_before = time.monotonic() + delay
                with about_matrices(task.matrices):
                    self._warn(f"{error}; trying again in {delay:g} s")
            count(Metric.RETRIES, kind="item")
            return [task]
        if parts := task.split():
            return parts
        of_storage = isinstance(error, StorageError)
        failed = Failed(task.what, task.matrices, task.attempts, str(error), of_storage)
        self.quarantine.add(failed)
        count(Metric.QUARANTINED)
        return []

    def _lose(self, worker: Actor, error: WorkerDiedError) -> None:
        stop([worker])
        self.workers.remove(worker)
        self._losses += 1
        count(Metric.LOST_WORKERS)
        self._warn(f"{error}; going on with {len(self.workers)}")

    def _join(self, reference: Any) -> None:
        worker = self._joining.pop(reference).worker
        try:
            result(reference, "start of a worker", self._timeout_s)
        except CompressorError as error:
            stop([worker])
            if type(error) is not WorkerDiedError:  # its node is not like the others
                self._warn(f"{error}; going on without that worker")
            return
        self.workers.append(worker)
        self.seconds[worker] = 0.0


def _overdue(calls: Mapping[Any, _Call | _Invitation]) -> list[Any]:
    now = time.monotonic()
    return [reference for reference, call in calls.items() if call.end <= now]
