"""The whole of `evaluate`: a baseline and a checkpoint, from folders and a text file to a table."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from pipeline.cli.tables.evaluation import evaluation_table
from pipeline.evaluate import evaluate
from runtime.configuration_lowrank import guarded
from schemas.errors import CheckpointError, ConfigError, TextError
from schemas.printable import escaped
from schemas.request.evaluation import EvaluationConfig
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import FORMAT
from tests.models import tiny_model, tiny_tokenizer
from tests.tables import shown
from workers.checkpoint.family import family
from workers.checkpoint.own_code import shipped
from workers.evaluation.perplexity import perplexity
from workers.model.inspection import inspect
from workers.model.loading import load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return tiny_model(root / "base"), tiny_model(root / "[small]", seed=1, intermediate_size=40)


def request(folders: tuple[Path, Path], source: Path, **fields: Any) -> EvaluationConfig:
    base, small = folders
    defaults: dict[str, Any] = {
        "baseline": str(base),
        "checkpoint": str(small),
        "text": str(source),
        "sequence_length": 64,
        "windows": 4,
        "device": "cpu",
        "sample_tokens": 4,
    }
    return EvaluationConfig(**(defaults | fields))


@pytest.fixture(scope="module")
def report(folders: tuple[Path, Path], text: Path) -> EvaluationReport:
    return evaluate(request(folders, text))


def test_both_models_see_the_first_windows(
    folders: tuple[Path, Path], text: Path, report: EvaluationReport
) -> None:
    ids = tiny_tokenizer()(text.read_text(), verbose=False)["input_ids"]
    windows = torch.tensor(ids[: 4 * 64]).view(4, 64)
    assert [model.name for model in report.models] == [str(folder) for folder in folders]
    for folder, found in zip(folders, report.models, strict=True):
        model = load_model(folder, "float32", "cpu", trust_remote_code=False)
        assert found.mean_nll == perplexity(model, windows).mean
        assert (found.windows, found.predicted_tokens) == (4, 4 * 63)
        assert found.parameters == model.num_parameters()


def test_without_a_limit_the_whole_text_counts(folders: tuple[Path, Path], text: Path) -> None:
    (model,) = evaluate(request(folders, text, baseline=None, windows=None)).models
    ids = tiny_tokenizer()(text.read_text(), verbose=False)["input_ids"]
    assert model.windows == len(ids) // 64


def test_a_model_that_is_laid_over_devices_says_the_same(
    folders: tuple[Path, Path], text: Path, report: EvaluationReport
) -> None:
    laid = evaluate(request(folders, text, device_map="auto", device="auto"))
    if not torch.cuda.is_available():
        assert [m.mean_nll for m in laid.models] == [m.mean_nll for m in report.models]
    assert all(math.isfinite(model.perplexity) for model in laid.models)


def cut(line: str) -> list[str]:
    """The cells of a row of a printed table, the first and the last of them empty."""
    return line.split("│")


def test_the_table_compares_with_the_baseline(report: EvaluationReport) -> None:
    base, small = report.models
    said = shown(evaluation_table(report))
    rows = {cells[1].strip(): cells[2:] for cells in map(cut, said.splitlines()) if len(cells) > 3}
    change = small.perplexity / base.perplexity - 1
    assert rows["perplexity"][0].strip() == f"{base.perplexity:.2f}"
    assert rows["perplexity"][1].strip() == f"{small.perplexity:.2f} ({change:+.1%})"
    assert f"({small.parameters / base.parameters - 1:+.1%})" in rows["parameters"][1]
    assert "[small]" in said
    assert base.generation is not None
    figures = rows["degenerate of 12, greedy / sampled"]
    wrote = base.generation
    assert figures[0].strip() == f"{wrote.greedy.degenerate} / {wrote.sampled.degenerate}"
    assert "repetition (seq-rep-4), greedy / sampled" in rows
    for model in report.models:
        assert model.sample is not None
        assert escaped(model.sample.split("\n")[0]) in said  # random weights write anything


def test_the_report_survives_json(report: EvaluationReport) -> None:
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report
    assert all(math.isfinite(model.perplexity) for model in report.models)


@pytest.fixture
def compressed(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """The base as a checkpoint of this program in which every matrix stayed dense."""
    base, _ = folders
    spec = inspect(base)
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    names = [matrix.name for matrix in spec.matrices]
    config = json.loads((base / "config.json").read_text())
    family_of = family(config, "config.json")
    config |= family_of.entries
    config["low_rank"] = {
        "format": 1,
        "matrices": {name: {"encoding": "dense", "rank": None} for name in names},
    }
    (tmp_path / "config.json").write_text(json.dumps(guarded(config)))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    for file, content in shipped(family_of).items():
        (tmp_path / file).write_bytes(content)
    tensors = load_file(base / "model.safetensors")
    for name in names:
        tensors[f"model.{name}.dense.weight"] = tensors.pop(f"model.{name}.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_our_own_checkpoint_needs_no_leave_to_load(
    compressed: Path, folders: tuple[Path, Path], text: Path, report: EvaluationReport
) -> None:
    again = evaluate(request(folders, text, checkpoint=str(compressed)))
    base, same = again.models
    assert same.mean_nll == base.mean_nll == report.models[0].mean_nll
    assert same.sample == base.sample
    assert same.generation == base.generation == report.models[0].generation
    assert same.parameters == base.parameters
    with (compressed / "modeling_lowrank.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(CheckpointError, match=r"modeling_lowrank\.py is not the code"):
        evaluate(request(folders, text, checkpoint=str(compressed)))


def test_another_tokenizer_is_refused(
    tmp_path: Path, folders: tuple[Path, Path], text: Path
) -> None:
    other = tiny_model(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(other)
    tokenizer.add_tokens(["The"])
    tokenizer.save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"tokenise .* differently .* as baseline"):
        evaluate(request(folders, text, checkpoint=str(other)))


def test_a_request_that_cannot_work_says_why(
    folders: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match="less than one window of 4000"):
        evaluate(request(folders, text, sequence_length=4000, windows=None))
    with pytest.raises(ConfigError, match="5000 is beyond the 4,096 tokens"):
        evaluate(request(folders, text, sequence_length=5000))
    short = tiny_model(tmp_path, max_position_embeddings=32)
    with pytest.raises(ConfigError, match="64 is beyond the 32 tokens"):  # of one of the two
        evaluate(request(folders, text, checkpoint=str(short)))
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate(request(folders, text, checkpoint="./nowhere"))
    with pytest.raises(TextError, match="not found"):
        evaluate(request(folders, text, text="nothing.txt"))


@pytest.mark.parametrize(
    "wrong", [{"sequence_length": 1}, {"windows": 0}, {"dtype": "int8"}, {"ratio": 0.2}]
)
def test_fields_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EvaluationConfig(checkpoint="x", **wrong)
