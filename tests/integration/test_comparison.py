"""A run compares base and result on a text before it publishes, and says what it found."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.compress import compress
from pipeline.evaluate import evaluate
from pipeline.plan.evaluation import EvaluationPlan, plan_evaluation
from schemas.errors import TextError
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import EvaluationTextConfig
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Check, OutputResult
from tests.integration.support import ask, file_sums
from tests.items import local
from tests.models import tiny_model
from workers.checkpoint.verify import require, verify_checkpoint, written_in
from workers.storage.files import file_sha256
from workers.storage.store import Store

LENGTH, WINDOWS = 64, 6
FLOAT32 = 2e-6  # of a mean over tokens, whatever the order in which products were added


@pytest.fixture(scope="module")
def config(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("comparison")
    evaluation = EvaluationTextConfig(text=str(text), sequence_length=LENGTH, windows=WINDOWS)
    model = tiny_model(folder / "model")
    return ask(model, text, folder / "output", ratio=(0.2, 0.5), evaluation=evaluation)


@pytest.fixture(scope="module")
def outputs(config: RunConfig, local_ray: None) -> tuple[OutputResult, ...]:
    return compress(config).outputs


def test_it_says_what_an_evaluation_in_memory_says(
    config: RunConfig, outputs: tuple[OutputResult, ...], text: Path
) -> None:
    for output in outputs:
        alone = evaluate(
            EvaluationConfig(
                checkpoint=str(output.path),
                baseline=config.model,
                text=str(text),
                sequence_length=LENGTH,
                windows=WINDOWS,
                sample_tokens=1,
            )
        )
        assert output.evaluation is not None
        for found, expected in zip(output.evaluation.models, alone.models, strict=True):
            assert found.mean_nll == pytest.approx(expected.mean_nll, rel=FLOAT32)
            assert (found.name, found.bytes_on_disk) == (expected.name, expected.bytes_on_disk)
            assert found.tokens_per_second
    one, other = (output.evaluation.models[1] for output in outputs if output.evaluation)
    assert one.kl
    assert other.kl
    assert one.kl < other.kl  # more is removed of it


def test_its_figures_are_those_of_both_models_streamed_at_once(
    config: RunConfig, outputs: tuple[OutputResult, ...], text: Path
) -> None:
    both = EvaluationConfig(
        checkpoint=str(outputs[1].path),
        baseline=config.model,
        text=str(text),
        sequence_length=LENGTH,
        windows=WINDOWS,
        streamed=True,
        workers=1,
    )
    assert outputs[1].evaluation
    found, expected = outputs[1].evaluation.models, evaluate(both).models
    assert [(m.mean_nll, m.kl) for m in found] == [(m.mean_nll, m.kl) for m in expected]


def test_it_is_part_of_the_checkpoint(outputs: tuple[OutputResult, ...]) -> None:
    for output in outputs:
        folder = local(output.path)
        written = EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes())
        assert written == output.evaluation
        require(verify_checkpoint(folder, published=True), folder)
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        for name in ("evaluation.json", "README.md"):
            assert listed[name]["sha256"] == file_sha256(folder / name)
        base, result = written.models
        row = f"| perplexity | {base.perplexity:.2f} | {result.perplexity:.2f} |"
        assert row in (folder / "README.md").read_text()
        for model in (base, result):
            assert model.sample
            assert model.sample.startswith("The city lies")
            assert model.generation
            for wrote in (model.generation.greedy, model.generation.sampled):
                assert len(wrote.texts) == len(written.prompts) == 12
            assert written.prompts[0] in model.sample
            assert model.sample.removeprefix(written.prompts[0]) in model.generation.greedy.texts[0]


def test_what_is_published_is_not_compared_again(
    config: RunConfig, outputs: tuple[OutputResult, ...]
) -> None:
    before = file_sums(local(config.output))
    again = compress(config).outputs
    assert [output.evaluation for output in again] == [output.evaluation for output in outputs]
    assert file_sums(local(config.output)) == before


MEASURED = {"name", "seconds", "tokens_per_second"}  # what differs between equal runs


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers of the base the workers read for each pass of an evaluation, in order."""
    found: list[int] = []

    def plan(*given: Any, **named: Any) -> EvaluationPlan:
        made = plan_evaluation(*given, **named)
        found.append(sum(len(part[0].range) for wave in made.waves for part in wave))
        return made

    monkeypatch.setattr("pipeline.stream.evaluation.plan_evaluation", plan)
    return found


@pytest.mark.parametrize("shape", [{"workers": 2}, {"shard_layers": 1}], ids=["chain", "waves"])
def test_the_base_is_scored_once_for_all_ratios(
    config: RunConfig,
    outputs: tuple[OutputResult, ...],
    loaded: list[int],
    shape: dict[str, int],
    tmp_path: Path,
) -> None:
    cluster = config.cluster.model_copy(update=shape)
    again = config.model_copy(update={"output": tmp_path / "output", "cluster": cluster})
    found = [output.evaluation for output in compress(again).outputs]
    assert loaded == [2, 0, 0]
    assert found[0]
    assert found[1]
    assert found[0].models[0] == found[1].models[0]
    assert figures(found) == figures(output.evaluation for output in outputs)

    alone = again.model_copy(update={"output": tmp_path / "alone", "ratio": (0.5,)})
    assert figures(output.evaluation for output in compress(alone).outputs) == figures(found)[1:]
    assert loaded == [2, 0, 0, 2, 0]


def test_a_later_start_does_not_score_the_base_again(
    config: RunConfig, outputs: tuple[OutputResult, ...], loaded: list[int], tmp_path: Path
) -> None:
    def start(ratio: float) -> EvaluationReport | None:
        update = {"run_dir": config.run_folder, "output": tmp_path / str(ratio), "ratio": (ratio,)}
        return compress(config.model_copy(update=update)).outputs[0].evaluation

    store = Store(config.run_folder)
    [written] = local(config.run_folder).glob("evaluations/base-*.json")
    base = Check.model_validate_json(written.read_text())
    written.write_text(base.model_copy(update={"detail": "what was kept"}).model_dump_json())
    kept = {record.key: record.attempt for record in store.records("boundaries")}
    assert len(kept) == WINDOWS + 1
    first, known = start(0.4), outputs[0].evaluation
    assert loaded == [0]
    assert first
    assert known
    told = first.models[0].model_copy(update={"sample": known.models[0].sample})
    assert (first.models[0].sample, told) == ("what was kept", known.models[0])
    written.unlink()  # as if nothing had been kept

    lost = next(key for key in kept if "/hidden/" in key)
    store.forget(lost)
    second = start(0.3)
    assert loaded == [0, 2, 0]
    assert second
    assert second.models[0] == known.models[0]
    now = {record.key: record.attempt for record in store.records("boundaries")}
    assert {key for key in kept if now[key] != kept[key]} == {lost}

    store.forget(next(key for key in kept if "speed" in key))  # as if killed just before it
    third = start(0.25)
    assert figures([third])[0][0] == figures([known])[0][0]
    anew = {record.key: record.attempt for record in store.records("boundaries")}
    assert all(anew[key] != now[key] for key in kept)


def figures(reports: Iterable[EvaluationReport | None]) -> list[list[dict[str, Any]]]:
    """What must be equal, of every model of every report."""
    return [
        [model.model_dump(exclude=MEASURED) for model in report.models]
        for report in reports
        if report
    ]


def test_a_text_that_is_too_short_is_refused_before_any_work(
    config: RunConfig, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    fields = {"evaluation": EvaluationTextConfig(text=str(short)), "output": tmp_path / "output"}
    with pytest.raises(TextError, match="less than one window"):
        compress(config.model_copy(update=fields))
    assert not (tmp_path / "output.run").exists()


def test_a_base_that_cannot_be_loaded_is_not_judged(
    outputs: tuple[OutputResult, ...], tmp_path: Path
) -> None:
    folder = local(outputs[0].path)
    checks = verify_checkpoint(folder, published=True, base=tmp_path)
    require(checks, folder)
    base, result = written_in(checks)
    assert base is None
    assert result
    assert result.detail
    assert result.generation
