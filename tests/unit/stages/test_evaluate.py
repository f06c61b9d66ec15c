"""What a run asks of the evaluation before it publishes, with nothing evaluated."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.plan.machines import on_cpu
from pipeline.progress import Progress
from pipeline.request.inputs import EvaluationText
from pipeline.stages import evaluate as stage
from pipeline.stages.output import Output
from pipeline.stream import evaluation as streamed
from pipeline.stream import scorers
from schemas.errors import WorkerDiedError
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from schemas.result.evaluation import EvaluationReport
from schemas.run.plan import ClusterSpec
from tests.nights import report


class Scored:
    """Stands for `compare`: keeps where it was to run, and says the same each time."""

    def __init__(self) -> None:
        self.where: list[ClusterConfig] = []
        self.clusters: list[ClusterSpec] = []

    def __call__(self, *given: Any) -> Any:
        self.where += [one for one in given if isinstance(one, ClusterConfig)]
        self.clusters += [one for one in given if isinstance(one, ClusterSpec)]
        return report(0.1).models


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    found = Scored()
    monkeypatch.setattr(stage, "compare", found)
    monkeypatch.setattr(stage, "inspect_decoder", mock.Mock())
    return found


def compare(folder: Path, windows: list[list[int]]) -> EvaluationReport | None:
    cluster = ClusterConfig(workers=3, shard_layers=5, item_timeout_s=9000, device="cpu")
    pool = mock.Mock(workers=[mock.Mock()] * 3)
    pool.each.side_effect = lambda _: pool.workers.pop()  # its node was lost
    run: Any = SimpleNamespace(
        config=RunConfig(model="m", output=folder / "o", ratio=(0.2,), cluster=cluster),
        inputs=SimpleNamespace(
            folder=folder, evaluation=EvaluationText("text.txt", torch.tensor(windows))
        ),
        store=SimpleNamespace(root=folder),
        facts=SimpleNamespace(dtype="float32"),
        plan=SimpleNamespace(cluster=on_cpu("float32", 3, 10**10)),
        spec=SimpleNamespace(layers=2, split={}, wide=()),
        pool=pool,
        progress=Progress(),
        discard=mock.Mock(),
        given_up={},
        ids=SimpleNamespace(forward="calibration", output=lambda *_: "identity"),
    )
    output = Output(run, 0.2)
    output.staging = folder
    stage.evaluate(output)
    return output.evaluation


def test_it_runs_as_the_run_does_on_the_workers_that_are_there(
    scored: Scored, tmp_path: Path
) -> None:
    compare(tmp_path, [[1, 2]])
    (where,) = scored.where
    assert (where.shard_layers, where.item_timeout_s) == (5, 9000)
    assert [cluster.workers for cluster in scored.clusters] == [2]  # as planned: nothing looks


def test_what_was_kept_of_another_text_of_the_same_name_is_not_used(
    scored: Scored, tmp_path: Path
) -> None:
    first = compare(tmp_path, [[1, 2]])
    assert compare(tmp_path, [[1, 2]]) == first
    assert len(scored.where) == 1
    compare(tmp_path, [[1, 3]])
    assert len(scored.where) == 2


def test_workers_that_do_not_start_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise WorkerDiedError("start of a worker: the cluster lost a node meanwhile")

    workers, ended = [mock.Mock(), mock.Mock()], list[Any]()
    monkeypatch.setattr(scorers, "start_workers", lambda *_: workers)
    monkeypatch.setattr(streamed, "agree", lose)
    monkeypatch.setattr(scorers, "stop", ended.extend)
    plan: Any = SimpleNamespace(waves=[[(), ()]], host_bytes=1)
    monkeypatch.setattr(streamed, "plan_evaluation", lambda *_: plan)
    cluster: Any = None
    evaluation = streamed.Evaluation([], torch.zeros(1, 2), ClusterConfig(), cluster, Progress())
    with pytest.raises(WorkerDiedError), closing(scorers.Scorers(ClusterConfig())) as hired:
        evaluation.run(None, hired)
    assert ended == workers


def test_workers_stay_while_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ended = list[Any](), list[Any]()

    def start(_: ClusterConfig, threads: int, memory: int, count: int) -> list[Any]:
        started.append((count, memory))
        return [mock.Mock() for _ in range(count)]

    monkeypatch.setattr(scorers, "start_workers", start)
    monkeypatch.setattr(scorers, "stop", ended.extend)
    with closing(scorers.Scorers(ClusterConfig())) as hired:
        two = hired.hire(2, 10)
        assert [hired.hire(1, 10), hired.hire(2, 5)] == [two[:1], two]
        three = hired.hire(3, 10)
        assert ended == two
        assert not {*two} & {*three}
        more = hired.hire(3, 11)
    assert started == [(2, 10), (3, 10), (3, 11)]
    assert ended == [*two, *three, *more]
