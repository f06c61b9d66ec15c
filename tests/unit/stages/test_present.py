"""What a report keeps of a spectrum, and what is shown and said of a checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.progress import Progress
from pipeline.stages import present as module
from pipeline.stages.present import present, remark, sample
from schemas.result.evaluation import EvaluationReport
from tests import reports


@pytest.mark.parametrize(("size", "rank"), [(1, None), (48, 7), (576, 575), (8192, 3000)])
def test_a_sampled_spectrum_has_both_ends_and_both_sides_of_the_cut(
    size: int, rank: int | None
) -> None:
    values = [1 / (at + 3) for at in range(size)]
    found = sample("layers.0.q", values, rank)
    assert found.size == size
    assert len(found.ranks) <= 64
    assert {1, size} <= {*found.ranks}
    assert rank is None or {rank, rank + 1} <= {*found.ranks}
    assert list(found.ranks) == sorted(set(found.ranks))
    assert found.values == pytest.approx([values[at - 1] for at in found.ranks], rel=1e-3)


def test_training_that_changed_nothing_is_remarked() -> None:
    rows = reports.matrices(1)
    trained = [reports.recovery(*losses) for losses in ((2.0,), (2.0, 1.0))]
    found = [remark(reports.compression(rows, recovery=one), None) for one in trained]
    assert "the factors are as they were" in found[0]
    assert found[1] == ""
    assert "predicted, +0.4137 measured" in remark(
        reports.compression(rows, nats=0.1), reports.evaluation()
    )


def test_what_an_evaluation_found_is_shown_and_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real report and card; what a whole run knows of itself is left out."""
    rows, evaluation, progress = reports.matrices(1), reports.evaluation(), Progress()
    shown: list[tuple[EvaluationReport, float]] = []
    monkeypatch.setattr(module, "show_perplexity", lambda *what: shown.append(what))
    monkeypatch.setattr(module, "gather_facts", lambda _: reports.facts(rows))
    monkeypatch.setattr(module, "write_manifest", lambda _: None)
    output: Any = SimpleNamespace(
        run=SimpleNamespace(progress=progress, inputs=SimpleNamespace(folder=model)),
        compression=reports.compression(rows, nats=0.1),
        evaluation=evaluation,
        ratio=0.2,
        staging=tmp_path,
    )
    present(output)
    assert shown == [(evaluation, 0.2)]
    assert (tmp_path / "evaluation.json").read_text() == evaluation.model_dump_json(indent=2) + "\n"
    [said] = progress.warnings
    assert said.startswith("ratio 0.2: +0.1000 nats a token were predicted, +0.4137 measured")


def test_a_spectrum_of_nothing_is_empty() -> None:
    assert sample("layers.0.q", [], 3).ranks == ()
