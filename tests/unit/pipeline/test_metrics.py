"""The table of metrics, and what is counted."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pipeline import metrics as driver
from pipeline.metrics import count_nightly, measured, show_perplexity
from pipeline.progress import Progress
from schemas.metrics import LABELS, Metric, Outcome
from tests import reports
from tests.spectra import matrix
from workers.actors import metrics
from workers.actors.metrics import count, show, show_memory
from workers.storage import traffic
from workers.storage.store import Store
from workers.storage.tensorfile import entries

Recorded = list[tuple[Metric, float, dict[str, str]]]
Moved = list[tuple[str, str, int]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What a driver records, and in order, instead of Ray."""
    found: Recorded = []

    def record(metric: Metric, value: float = 1, **labels: str) -> None:
        found.append((metric, value, labels))

    monkeypatch.setattr(driver, "count", record)
    monkeypatch.setattr(driver, "show", record)
    return found


@pytest.mark.parametrize("metric", Metric, ids=lambda metric: metric.metric)
def test_names_are_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"svdllm(_[a-z]+)+", metric.metric)
    assert metric.metric.endswith("_total") == (metric.kind == "counter")
    assert "memory" not in metric.metric or metric.metric.endswith("_bytes")
    assert set(metric.labels) <= LABELS.keys()
    assert metric.description


def test_labels_are_few_and_all_in_use() -> None:
    assert {label for metric in Metric for label in metric.labels} == LABELS.keys()
    assert len({metric.metric for metric in Metric}) == len(Metric)


def test_a_stage_is_counted_once(recorded: Recorded) -> None:
    progress = Progress()
    matrices = [matrix(layer, 4, 4, path) for layer in (0, 1) for path in ("up", "down")]
    with measured(progress):
        with progress.stage("factorise", 4, "matrices", matrices) as stage:
            stage.advance(2, matrices=[matrices[0], matrices[2]])
            stage.advance(1, matrices=[matrices[1]])
        with progress.stage("calibrate forward", 8, "windows") as stage:
            stage.advance(3, tokens=300)
            stage.advance(5, tokens=500)
    with progress.stage("verify", 1, "items") as stage:
        stage.advance()
    sums: Counter[tuple[Metric, str]] = Counter()
    for metric, value, labels in recorded:
        if metric.kind == "counter":
            sums[metric, labels["stage"]] += int(value)
    assert {key: value for key, value in sums.items() if value} == {
        (Metric.STAGE_ITEMS, "factorise"): 3,
        (Metric.MATRICES, "factorise"): 3,
        (Metric.LAYERS, "factorise"): 1,
        (Metric.STAGE_ITEMS, "calibrate forward"): 8,
        (Metric.TOKENS, "calibrate forward"): 800,
    }


def test_the_stage_under_way_is_shown(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REFRESH_S", 0.0)
    progress = Progress()
    shown = (Metric.STAGE_PROGRESS, 0.25, {"stage": "load"})
    with measured(progress), progress.stage("load", 4, "shards") as stage:
        stage.advance()
        while shown not in recorded:  # again and again, by itself
            pass
    assert recorded.index((Metric.STAGE_PROGRESS, 0.0, {"stage": "load"})) < recorded.index(shown)


def test_perplexity_of_base_and_result(recorded: Recorded) -> None:
    show_perplexity(reports.evaluation(10.0, 11.5), 0.20)
    assert recorded == [
        (Metric.PERPLEXITY, 10.0, {"model": "base", "ratio": "0.2"}),
        (Metric.PERPLEXITY, 11.5, {"model": "compressed", "ratio": "0.2"}),
    ]


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_a_nightly_success_has_a_time(outcome: Outcome, recorded: Recorded) -> None:
    count_nightly(outcome)
    times = [Metric.NIGHTLY_SUCCESS] if outcome == "succeeded" else []
    assert [row[0] for row in recorded] == [Metric.NIGHTLY_CHECKPOINTS, *times]
    assert recorded[0][1:] == (1, {"outcome": outcome})


@pytest.fixture
def ray_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)


def test_a_label_that_the_table_has_not_is_refused(ray_up: None) -> None:
    with pytest.raises(ValueError, match="svdllm_tokens_total has the labels"):
        count(Metric.TOKENS, 1, matrix="layers.0")
    with pytest.raises(ValueError, match="svdllm_perplexity has the labels"):
        show(Metric.PERPLEXITY, 1.0)


def test_a_gpu_shows_its_peak_since_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    size = type("", (), {"total_memory": 80})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: size)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: found.append("reset"))
    monkeypatch.setattr(metrics, "show", lambda *shown: found.append(shown))
    monkeypatch.setattr(metrics, "keep", lambda record: record())
    show_memory(torch.device("cpu"))
    assert found == []
    for _ in range(2):  # for a compression, then for an evaluation
        show_memory(torch.device("cuda"))
    assert found == [(Metric.GPU_ALLOCATED, 60), (Metric.GPU_MEMORY, 80), "reset"]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    """What this process reads and writes."""
    monkeypatch.setattr(traffic, "_listeners", set())
    found: Moved = []
    traffic.listen(lambda *what: found.append(what))
    return found


def test_items_are_counted_when_they_are_written_and_read(moved: Moved, tmp_path: Path) -> None:
    store = Store(tmp_path)
    content = {"x": torch.ones(3)}
    record = store.commit("moments/id/a.safetensors", entries(content))
    store.commit("moments/id/a.safetensors", entries(content))  # there already
    store.load(record.key)
    assert moved == [("written", "moments", record.bytes), ("read", "moments", record.bytes)]
