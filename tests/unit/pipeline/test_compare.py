"""What a comparison refuses before any work, and what it asks of others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.compare
from pipeline.compare import compare
from schemas.errors import CompressorError, RunError
from schemas.request.comparison import ComparisonConfig
from schemas.request.evaluation import EvaluationConfig
from tests import reports
from tests.kinds import save_kind


@pytest.fixture(name="fields")
def fields_(text: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": "unused", "output": tmp_path / "out", "evaluate": (str(text),)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"evaluate": ("wikitext2", "typo.txt")}, "typo.txt: not found"),
        ({"schemes": "W8A16"}, "fewer bits need compressed-tensors"),
        ({"tasks": {"names": "choice", "folder": "nowhere"}}, "tasks.folder nowhere: no such"),
        ({"model": "s3://b/m", "schemes": "W8A16"}, "s3://b/m: --schemes needs models that every"),
        (
            {"model": "s3://b/m", "tasks": {"names": "choice"}},
            "s3://b/m: --tasks needs models that",
        ),
    ],
)
def test_what_comes_last_is_looked_at_first(
    fields: dict[str, Any], asked: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(pipeline.compare, "look", begin)
    monkeypatch.setattr("workers.quantisation.find_spec", lambda name: None)
    with pytest.raises(CompressorError, match=message):
        compare(ComparisonConfig.model_validate(fields | asked))


def test_each_run_has_what_its_method_uses_of_the_shared_settings(fields: dict[str, Any]) -> None:
    numerics = {"input_shrinkage": 0.2, "threads": 2}
    asked = {"numerics": numerics, "calibration": {"gradient_samples": 8, "samples": 3}}
    request = ComparisonConfig.model_validate(fields | asked)
    for method, config in request.runs.items():
        uses = method == "two-sided"
        assert config.method == method
        assert config.numerics.input_shrinkage == (0.2 if uses else 0.05)
        assert (config.calibration.gradient_samples == 8) is config.needs_gradients
        assert (config.numerics.threads, config.calibration.samples) == (2, 3)


@pytest.mark.parametrize("length", [64, 9000])
def test_a_text_that_no_run_scores_is_read_before_the_runs(
    fields: dict[str, Any], model: Path, tmp_path: Path, length: int
) -> None:
    """And a length beyond the model is refused by the option of this command."""
    short = tmp_path / "short.txt"
    short.write_text("Seven words are not enough for it.")
    asked = {"model": str(model), "evaluate": (*fields["evaluate"], str(short))}
    calibration = {"text": fields["evaluate"], "samples": 1, "sequence_length": 16}
    rest = {"sequence_length": length, "windows": 1, "calibration": calibration}
    refused = (
        "less than one window of 64" if length == 64 else "^--evaluation-length 9000 is beyond"
    )
    with pytest.raises(CompressorError, match=refused):
        compare(ComparisonConfig.model_validate(fields | asked | rest))


@pytest.mark.slow
def test_a_scheme_in_which_the_base_would_not_load_is_refused_before_the_runs(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.compare, "ray_session", lambda *_: pytest.fail("work has begun"))
    asked = {"model": str(save_kind("qwen3_moe", tmp_path / "model")), "schemes": "W8A16"}
    small = {"samples": 1, "sequence_length": 16, "gradient_length": 16}
    rest = {"calibration": {"text": fields["evaluate"]} | small, "sequence_length": 64}
    with pytest.raises(CompressorError, match="transformers does not load it in W8A16"):
        compare(ComparisonConfig.model_validate(fields | asked | rest))


@pytest.mark.parametrize(("model", "revision"), [("s3://b/m", None), ("org/m", "c0ffee")])
def test_workers_read_the_base_where_runs_did(
    model: str, revision: str | None, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder here of one in a store has no weights; that of a hub id is not on their nodes."""
    asked = list[EvaluationConfig]()

    def stop(config: EvaluationConfig, _: object) -> None:
        asked.append(config)
        raise RunError("stopped")

    monkeypatch.setattr(pipeline.compare, "evaluate", stop)
    request = ComparisonConfig.model_validate(fields | {"model": model})
    row = reports.compared(method="svd", place="out/svd", dtype="bfloat16")
    base: Any = SimpleNamespace(config=SimpleNamespace(model=model, revision=revision))
    scorers: Any = None
    with pytest.raises(RunError, match="stopped"):
        pipeline.compare._on_every_text(request, base, row, scorers)
    assert (asked[0].baseline, asked[0].revision) == (model, revision)
    assert asked[0].streamed
    assert asked[0].dtype == row.dtype


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": "svd,pca"}, "Input should be 'two-sided'"),
        ({"schemes": "W8A16,W5"}, "Input should be 'W2A16'"),
        ({"evaluate": "a.txt,b.txt,c.txt"}, "at most 2"),
        ({"target_size": "1MB"}, "leave out --ratios"),
        ({"tasks": {"names": "arc", "samples": "s.parquet"}}, "samples: of one checkpoint"),
    ],
)
def test_unknown_methods_and_too_many_texts_are_refused(
    asked: dict[str, str], message: str
) -> None:
    given = {"model": "m", "output": "out", "ratios": "0.2", "evaluate": "a.txt"}
    ComparisonConfig.model_validate(given)
    with pytest.raises(ValueError, match=message):
        ComparisonConfig.model_validate(given | asked)
