"""Methods at equal parameters on one model, by one command that continues where it stopped."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import pipeline.compare
import pipeline.compress
from pipeline.cli.tables.comparison import comparison_table
from pipeline.compare import compare
from pipeline.evaluate import evaluate
from pipeline.quantize import is_made_so, text_of
from schemas.errors import BudgetError, ConfigError, RunError
from schemas.request.comparison import ComparisonConfig
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, NumericsConfig
from schemas.request.methods import METHODS, Method
from schemas.result.comparison import ComparisonReport, title
from schemas.result.evaluation import EvaluationReport
from tests.integration.support import CALIBRATION, item_attempts
from tests.models import tiny_model
from tests.prose import prose
from tests.tables import printed, shown
from tests.tasks import write_choice
from workers.checkpoint.published import read_compression, read_quantization

RATIOS = (0.2, 0.5)


@pytest.fixture(scope="module")
def request_(text: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    folder = tmp_path_factory.mktemp("comparison")
    other = folder / "other.txt"
    other.write_text(prose(9_000)[::-1])
    return ComparisonConfig(
        model=str(tiny_model(folder / "model")),
        output=folder / "compared",
        ratios=RATIOS,
        schemes=("W8A16",),
        evaluate=(str(text), str(other)),
        sequence_length=64,
        windows=4,
        calibration=CalibrationConfig(text=str(text), **CALIBRATION),
        cluster=ClusterConfig(workers=1, device="cpu"),
    )


@pytest.fixture(scope="module")
def report(local_ray: None, request_: ComparisonConfig) -> ComparisonReport:
    """Of a command that was stopped when half of the methods were done."""
    with pytest.MonkeyPatch.context() as patch:
        done = list[Any]()
        compress = pipeline.compress.compress

        def stop(*given: Any) -> Any:
            if len(done) == 3:
                raise RunError("stopped")
            done.append(compress(*given))
            return done[-1]

        patch.setattr(pipeline.compare, "compress", stop)
        with pytest.raises(RunError, match="stopped"):
            compare(request_)
    before = item_attempts(request_.output / "run", "moments", "factors")
    report = compare(request_)
    after = item_attempts(request_.output / "run", "moments", "factors")
    assert before.items() <= after.items()
    return report


def test_every_method_is_there_at_equal_parameters(report: ComparisonReport) -> None:
    rows = [(row.ratio, row.method) for row in report.rows]
    methods = [name for name in METHODS if name not in ("neurons", "width")]
    assert rows == [(0.0, "W8A16"), *((ratio, method) for ratio in RATIOS for method in methods)]
    for row in report.rows[1:]:
        assert row.ratio <= row.removed < row.ratio + 0.05  # a rank of a tiny matrix is much
        assert [len(evaluation.models) for evaluation in row.evaluations] == [2, 2]
        one, other = (evaluation.models[1] for evaluation in row.evaluations)
        assert one.perplexity != other.perplexity
        assert one.kl
        assert other.kl
        assert (row.predicted is not None) == (row.method == "two-sided")


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m]["factors"] == "plain"])
def test_the_papers_methods(report: ComparisonReport, method: Method) -> None:
    [row] = [row for row in report.rows if (row.method, row.ratio) == (method, 0.5)]
    done = read_compression(Path(row.place))
    assert done.method == {"preset": method} | METHODS[method]
    assert done.targeted_after <= 0.5 * done.targeted_before
    assert {row.encoding for row in done.matrices} == {"plain"}
    assert all(row.parameters == (row.rank or 0) * sum(row.shape) for row in done.matrices)
    assert done.fallbacks == ()
    uniform = {  # v1 and older ones: every matrix within one rank step of the target
        row.name: int(0.5 * math.prod(row.shape) / sum(row.shape)) for row in done.matrices
    }
    assert ({row.name: row.rank for row in done.matrices} == uniform) == (
        METHODS[method]["allocation"] == "uniform"
    )


def test_moments_are_shared(request_: ComparisonConfig, report: ComparisonReport) -> None:
    """The whole Gram by both papers of SVD-LLM, magnitudes by all that scale columns."""
    names = [key.rsplit("/", 1)[1] for key in item_attempts(request_.output / "run", "moments")]
    inputs = 4 * 2  # of q, o, gate and down in two layers
    assert len(names) == len(set(names))
    assert sum(name.endswith(".input-magnitudes.safetensors") for name in names) == inputs
    assert sum(name.endswith(".weight-gradient.safetensors") for name in names) == 7 * 2


def test_the_command_prints_what_the_page_says(
    request_: ComparisonConfig, report: ComparisonReport, tmp_path: Path
) -> None:
    """All is there already, so it has nothing to do."""
    asked = tmp_path / "asked.yaml"
    asked.write_text(request_.model_dump_json(exclude_unset=True))
    said, as_json = (printed("compare", "--config", asked, *how) for how in ((), ("--json",)))
    for written in (as_json, (request_.output / "comparison.json").read_text()):
        assert ComparisonReport.model_validate_json(written).rows == report.rows
    page = (request_.output / "comparison.html").read_text()
    assert "base in W8A16" in said
    for row in report.rows[1:]:
        perplexity = f"{row.evaluations[0].models[1].perplexity:.2f}"
        assert perplexity in said
        assert perplexity in page
        assert title(row.method) in page


def test_the_base_at_fewer_bits_is_beside_them(
    request_: ComparisonConfig, report: ComparisonReport
) -> None:
    row = report.rows[0]
    assert row.bytes < min(other.bytes for other in report.rows[1:])
    for evaluation in row.evaluations:
        dense, quantised = evaluation.models
        assert quantised.perplexity == pytest.approx(dense.perplexity, rel=0.02)
        assert quantised.perplexity != dense.perplexity
    file = request_.output / "W8A16" / "quantization.json"
    told = file.read_text()
    assert json.loads(told)["base"] == request_.model
    file.write_text(told.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ConfigError, match="was quantised from another model or text"):
        compare(request_.model_copy(update={"methods": ("svd",)}))
    file.write_text(told)
    done = read_quantization(request_.output / "W8A16")
    calibrated = request_.quantised(done.checkpoint, "W4A16", "unused")
    gptq: dict[str, Any] = {"scheme": "W4A16", "calibration": calibrated.calibration}
    gptq["text"] = text_of(calibrated, Path(done.checkpoint))
    done = done.model_copy(update=gptq)
    assert is_made_so(done, calibrated)
    assert not is_made_so(done, calibrated.model_copy(update={"calibration_samples": 9}))
    for wrong in ({"group_size": 32}, {"source_files": done.source_files | {"config.json": "x"}}):
        assert not is_made_so(done.model_copy(update=wrong), calibrated)


def test_another_text_is_not_given_the_scores_of_the_first(
    request_: ComparisonConfig, report: ComparisonReport
) -> None:
    """Nor is less of it: what is published was scored as the first command asked."""
    for fields in ({"evaluate": request_.evaluate[1:]}, {"windows": 2}):
        asked: dict[str, Any] = {"methods": ("svd",), "schemes": (), **fields}
        other = request_.model_copy(update=asked)
        for row in compare(other).rows:
            evaluations = [(one.text, one.models[1].windows) for one in row.evaluations]
            assert evaluations == [(text, other.windows) for text in other.evaluate]
            [before] = [one for one in report.rows if one.place == row.place]
            assert row.evaluations[0] != before.evaluations[0]
    assert compare(request_).rows == report.rows


def test_a_text_that_is_shorter_than_asked_is_scored_once(
    local_ray: None, request_: ComparisonConfig, tmp_path: Path
) -> None:
    """By the run: there is nothing left to score beside it."""
    short = tmp_path / "short.txt"
    short.write_text(prose(400))
    asked = {"methods": ("svd",), "ratios": (0.5,), "schemes": (), "evaluate": (str(short),)}
    [row] = compare(request_.model_copy(update={**asked, "output": tmp_path / "out"})).rows
    [evaluation] = row.evaluations
    assert evaluation.models[1].windows < request_.windows == evaluation.asked
    assert not (tmp_path / "out" / "evaluations").exists()


def test_a_text_that_was_edited_is_scored_again(
    local_ray: None, request_: ComparisonConfig, tmp_path: Path
) -> None:
    texts = [tmp_path / name for name in ("one.txt", "two.txt")]
    for text in texts:
        text.write_text(prose(2_000))
    asked: dict[str, Any] = {"methods": ("svd",), "ratios": (0.5,), "schemes": ()}
    asked |= {"evaluate": tuple(map(str, texts)), "output": tmp_path / "out"}
    request = request_.model_copy(update=asked)
    [before] = compare(request).rows
    for text in texts:
        text.write_text(prose(2_000)[::-1])
    [after] = compare(request).rows
    for one, other in zip(before.evaluations, after.evaluations, strict=True):
        assert [m.perplexity for m in one.models] != [m.perplexity for m in other.models]
    assert after.evaluations[0].models[1].perplexity == pytest.approx(
        after.evaluations[1].models[1].perplexity
    )
    assert compare(request).rows == (after,)


def test_tasks_of_what_is_finished(
    request_: ComparisonConfig,
    report: ComparisonReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_choice(tmp_path)
    monkeypatch.setattr("pipeline.tasks.Harness", None)  # all rows share one
    fields = {"methods": ("svd",), "tasks": TasksConfig(names=("choice",), folder=tmp_path)}
    found = compare(request_.model_copy(update=fields))
    kept = {(row.method, row.ratio): row.evaluations for row in report.rows}
    for row in found.rows:
        assert row.evaluations == kept[row.method, row.ratio]
    said = shown(comparison_table(found))
    for row in found.rows:
        assert row.tasks is not None
        [choice] = row.tasks.rows
        assert choice.difference is not None
        assert f"{choice.scores[1].value:.4f}, {choice.difference.value:+.4f}" in said


def test_all_is_scored_in_the_dtype_of_the_runs(
    local_ray: None,
    request_: ComparisonConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Except NVFP4, which computes in that of the checkpoint only. What is kept counts on any
    workers.
    """
    write_choice(tmp_path)
    asked = list[EvaluationConfig]()

    def spy(config: EvaluationConfig, scorers: Any) -> EvaluationReport:
        asked.append(config)
        return evaluate(config, scorers)

    monkeypatch.setattr(pipeline.compare, "evaluate", spy)
    fields: dict[str, Any] = {
        "methods": ("svd",),
        "ratios": (0.5,),
        "schemes": ("W8A16", "NVFP4"),
        "output": tmp_path / "out",
        "numerics": NumericsConfig(dtype="bfloat16"),
        "cluster": ClusterConfig(workers=1, device="cpu", shard_layers=1),
        "tasks": TasksConfig(names=("choice",), folder=tmp_path),
    }
    request = request_.model_copy(update=fields)
    found = compare(request)
    for row in found.rows:
        assert row.tasks is not None
        assert {row.tasks.dtype, *(one.dtype for one in row.evaluations)} == {row.dtype}
    dtypes = {row.method: row.dtype for row in found.rows}
    assert dtypes == {"svd": "bfloat16", "W8A16": "bfloat16", "NVFP4": "auto"}
    [streamed] = [config for config in asked if config.streamed]
    assert (streamed.shard_layers, streamed.work_dir) == (1, request.output)
    asked.clear()
    elsewhere = {"cluster": ClusterConfig(workers=2, device="cpu")}
    again = compare(request.model_copy(update=elsewhere)).rows
    assert [row.evaluations for row in again] == [row.evaluations for row in found.rows]
    assert not asked


def test_the_best_within_a_size(request_: ComparisonConfig, report: ComparisonReport) -> None:
    """The base fits at 4 bits, has to be cut at 8, and more as it is stored: of one calibration."""
    run = request_.output / "run"
    before = item_attempts(run, "moments", "bases")
    asked = {
        "target_size": "123kB",
        "schemes": ("W8A16", "W4A16"),
        "evaluate": request_.evaluate[:1],
    }
    shared = request_.model_dump(exclude_unset=True, exclude={"ratios"})
    found = compare(ComparisonConfig.model_validate(shared | asked))
    assert item_attempts(run, "moments", "bases") == before
    assert [row.title for row in found.rows] == ["base in W4A16", "two-sided in W8A16", "two-sided"]
    assert [row.ratio > 0 for row in found.rows] == [False, True, True]
    for row in found.rows:
        files = sum(path.stat().st_size for path in Path(row.place).glob("*.safetensors"))
        assert row.bytes < files <= 123_000
    best = min(found.rows, key=lambda row: row.evaluations[0].models[1].perplexity)
    written = ComparisonReport.model_validate_json(
        (request_.output / "comparison.json").read_text()
    )
    assert written.best == best.place
    assert f"best within 123KB: {best.title}, " in shown(comparison_table(found))
    told = read_compression(Path(found.rows[1].place))
    assert told.budget is not None
    assert told.budget.reached == sum(
        path.stat().st_size for path in Path(found.rows[1].place).glob("*.safetensors")
    )
    with pytest.raises(BudgetError, match=r"two-sided in W4A16: .* the most that can go leaves"):
        compare(ComparisonConfig.model_validate(shared | asked | {"target_size": 95_000}))
