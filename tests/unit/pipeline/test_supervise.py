"""Starts of workers that fail: by chance, or alike every time. No Ray runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline import supervise as module
from pipeline.progress import Progress
from pipeline.supervise import Supervisor
from schemas.errors import (
    CompressorError,
    DiskError,
    NodesError,
    StorageFullError,
    WorkerDiedError,
    WorkerError,
    WorkerStartError,
)
from schemas.metrics import Metric
from schemas.request.config import RunConfig
from schemas.run.stages import StageName

MISSING = "start of a worker: ModuleNotFoundError: No module named 'workers.actors'"


class Started:
    """A run whose workers are there."""

    ids = "the same"

    def committed(self) -> frozenset[str]:
        return frozenset()

    def close(self) -> None:
        pass


def run(config: RunConfig, starts: Iterable[WorkerDiedError | None], fails: int = 0) -> Progress:
    """A run whose starts fail as `starts` says, and whose stages are lost `fails` times."""
    progress, failures, losses = Progress(), iter(starts), iter(range(fails))

    def start(*_: object) -> Any:
        if error := next(failures):
            raise error
        return Started()

    def stages(_: object) -> str:
        if next(losses, None) is not None:
            raise WorkerDiedError("calibrate: a worker died")
        return "done"

    assert Supervisor(config, progress).run(start, stages) == "done"
    return progress


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A request; nothing waits, and the cluster has room for one worker."""
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)
    monkeypatch.setattr(module, "on_gpus", lambda cluster: False)
    monkeypatch.setattr(module, "workers_there", lambda cluster, threads: 1)
    monkeypatch.setattr(module, "count", lambda *_, **__: None)
    return RunConfig(model="m", output=Path("out"), ratio=(0.3,))


@pytest.mark.parametrize(("stage", "error"), [("start", DiskError), ("evaluate", StorageFullError)])
def test_a_disk_without_room_is_a_failed_run_once_it_has_computed(
    config: RunConfig, stage: StageName, error: type[Exception]
) -> None:
    progress = Progress()

    def stages(_: object) -> None:
        with progress.stage(stage, 1, "model"):
            pass
        raise DiskError("2 bytes are free")

    with pytest.raises(CompressorError, match="2 bytes are free") as caught:
        Supervisor(config, progress).run(lambda *_: cast(Any, Started()), stages)
    assert type(caught.value) is error


def test_workers_that_fail_alike_end_the_run_with_their_own_message(config: RunConfig) -> None:
    with pytest.raises(NodesError, match="3 starts of the workers failed like that") as caught:
        run(config, [WorkerStartError(MISSING)] * 3)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(MISSING)
    assert "give all nodes the Python, the libraries" in str(caught.value)


def test_a_cluster_that_lacks_what_the_run_needs_is_told_apart(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From losses of workers, for which the run may be at fault."""
    with pytest.raises(WorkerError, match="loss 3 in a row") as caught:
        run(config, [None] * 3, fails=3)
    assert type(caught.value) is WorkerError
    monkeypatch.setattr(module, "start_timeout", lambda _: 0.0)
    with pytest.raises(NodesError, match="no start of the workers came through"):
        run(config, [WorkerDiedError("start of a worker: lost")] * 2)
    found = iter([True, False])
    monkeypatch.setattr(module, "on_gpus", lambda _: next(found))
    with pytest.raises(NodesError, match="no GPU is left"):
        run(config, [None])
    left = iter([1, 0])
    monkeypatch.setattr(module, "on_gpus", lambda _: False)
    monkeypatch.setattr(module, "workers_there", lambda *_: next(left))
    with pytest.raises(NodesError, match=r"no node with numerics.threads CPUs \(1\) is left"):
        run(config, [None], fails=1)


def test_every_loss_that_a_run_goes_on_from_is_counted(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[Metric, dict[str, str]]] = []
    monkeypatch.setattr(module, "count", lambda metric, **labels: counted.append((metric, labels)))
    run(config, [None] * 3, fails=2)
    assert counted == [(Metric.RETRIES, {"kind": "run"})] * 2


def test_as_many_failures_as_are_allowed_are_warnings(config: RunConfig) -> None:
    progress = run(config, [WorkerStartError(MISSING)] * 2 + [None])
    assert progress.warnings == [f"{MISSING}; starting again on what the cluster has then"] * 2


def test_losses_of_nodes_and_other_failures_are_no_same_failure(config: RunConfig) -> None:
    chance = [WorkerDiedError("start of a worker: the cluster lost a node meanwhile")] * 5
    other = [WorkerStartError(MISSING), WorkerStartError("MemoryError")] * 2
    assert len(run(config, [*chance, *other, None]).warnings) == 9


def test_a_start_that_comes_through_begins_the_count_anew(config: RunConfig) -> None:
    starts = [WorkerStartError(MISSING)] * 2
    assert len(run(config, [*starts, None, *starts, None], fails=1).warnings) == 5


def test_a_run_goes_on_after_training_with_what_nodes_are_left(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training notices a loss by itself, so the start after it meets a smaller cluster."""
    cluster = config.cluster.model_copy(update={"workers": 4, "replicas": 2})
    there = iter([4, 1])
    monkeypatch.setattr(module, "workers_there", lambda cluster, threads: next(there))
    seen: list[tuple[int | None, int | None]] = []

    def start(config: RunConfig, *_: object) -> Any:
        seen.append((config.cluster.workers, config.cluster.replicas))
        return Started()

    progress = Progress()
    supervisor = Supervisor(config.model_copy(update={"cluster": cluster}), progress)
    for _ in range(2):
        assert supervisor.run(start, lambda _: "done") == "done"
    assert seen == [(4, 2), (1, 1)]
    assert progress.warnings == ["cluster.workers is 4: going on with 1"]


def test_replicas_are_no_more_than_the_workers_that_a_loss_leaves(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = config.cluster.model_copy(update={"replicas": 4})
    there = iter([4, 3])
    monkeypatch.setattr(module, "workers_there", lambda cluster, threads: next(there))
    progress = run(config.model_copy(update={"cluster": cluster}), [None, None], fails=1)
    assert progress.warnings[-1] == "cluster.replicas is 4: going on with 3"
