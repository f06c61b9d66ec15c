"""A finished checkpoint that is to be trained: which run it asks for, and when it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.request.adopt import adopting
from pipeline.request.inputs import Inputs, gather
from pipeline.request.preflight import check
from schemas.errors import CheckpointError, CompressorError, ConfigError, TextError
from schemas.request.adoption import AdoptionConfig
from schemas.request.groups import CalibrationConfig, NumericsConfig, TargetsConfig
from schemas.result.output import MatrixResult
from tests.models import tiny_model
from tests.prose import prose
from tests.reports import compression
from tests.unit.checkpoint.conftest import seal
from workers.model.inspection import inspect

CUT: dict[str, Any] = {
    "ratio": 0.35,
    "seed": 7,
    "method": {
        "preset": "svd-llm",
        "truncation": "svd-llm",
        "allocation": "uniform",
        "factors": "pivoted",
    },
    "targets": TargetsConfig(ignore=("v_proj",)),
    "numerics": NumericsConfig(dtype="bfloat16", pivot_bound=10.0),
}


def describe(folder: Path, model: Path, **fields: Any) -> None:
    """Write compression.json of a checkpoint whose matrices are all plain at rank 4."""
    spec = inspect(model)
    rows = tuple(
        MatrixResult(
            name=matrix.name,
            shape=(matrix.out_features, matrix.in_features),
            encoding="plain",
            rank=4,
            parameters=1,
            predicted_loss=0.0,
            achieved_loss=0.0,
            energy=None,
        )
        for matrix in spec.matrices
        if "v_proj" not in matrix.name
    )
    found = compression(rows, **(CUT | {"model": str(model)} | fields))
    (folder / "compression.json").write_text(found.model_dump_json())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(prose(20_000))
    return path


@pytest.fixture
def cut(model: Path, text: Path, tmp_path: Path) -> Path:
    """A finished checkpoint, as far as this stage looks at it."""
    folder = tmp_path / "cut"
    folder.mkdir()
    describe(folder, model, calibration=CalibrationConfig(text=str(text)))
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (seal(folder, model) / "_SUCCESS").touch()
    return folder


def asked(cut: Path, model: Path, **fields: Any) -> AdoptionConfig:
    given = {"checkpoint": cut, "base": str(model), "output": cut.parent / "out"}
    recovery = {"sequence_length": 64, "tokens": 640}
    return AdoptionConfig.model_validate(given | {"recovery": recovery} | fields)


def gathered(request: AdoptionConfig) -> Inputs:
    return gather(check(adopting(request)))


def refused(request: AdoptionConfig, kind: type[CompressorError]) -> str:
    with pytest.raises(kind) as caught:
        gathered(request)
    return str(caught.value)


def test_the_run_is_that_of_the_checkpoint(cut: Path, model: Path) -> None:
    config = adopting(asked(cut, model))
    assert config.ratio == (0.35,)
    assert (config.method, config.truncation, config.factors) == ("svd-llm", "svd-llm", "pivoted")
    assert (config.seed, config.targets, config.numerics.pivot_bound) == (7, CUT["targets"], 10.0)
    assert config.numerics.dtype == "auto"
    assert not config.calibrates
    assert not config.needs_gradients
    assert adopting(asked(cut, model, seed=3, dtype="float32")).seed == 3


def test_what_an_earlier_version_recorded_without_its_use_is_left_out(
    cut: Path, model: Path
) -> None:
    numerics = NumericsConfig(pivot_bound=10.0, neuron_floor=0.1)
    describe(cut, model, calibration=CalibrationConfig(gradient_samples=8), numerics=numerics)
    (seal(cut, model) / "_SUCCESS").touch()
    config = adopting(asked(cut, model))
    assert config.numerics == NumericsConfig(pivot_bound=10.0)
    assert config.calibration.gradient_samples is None


def test_recovery_is_left_out_only_if_refinement_alone_is_asked_for(cut: Path, model: Path) -> None:
    def trains(**fields: Any) -> tuple[bool, bool]:
        config = adopting(asked(cut, model, **fields))
        return config.refinement.enabled, config.recovery.enabled

    refine = {"enabled": True}
    assert trains() == (False, True)
    assert trains(refinement=refine, recovery={}) == (True, False)
    assert trains(refinement=refine, recovery={"enabled": True}) == (True, True)


def test_a_request_to_train_nothing_is_refused(cut: Path, model: Path) -> None:
    asked = {"checkpoint": cut, "base": str(model), "output": cut.parent / "out"}
    with pytest.raises(ConfigError, match="nothing to do; add --refine"):
        adopting(AdoptionConfig.model_validate(asked | {"recovery": {"enabled": False}}))


def test_no_text_is_read_for_calibration(cut: Path, model: Path, text: Path) -> None:
    found = gathered(asked(cut, model))
    assert found.forward.numel() == 0
    assert found.backward is None
    assert found.recovery is not None
    assert found.recovery.windows.shape == (10, 64)
    assert found.adopted is not None
    assert found.adopted.manifest.output == "output"
    text.unlink()
    assert "name one with --recovery-text" in refused(asked(cut, model), TextError)
    other = text.with_name("other.txt")
    other.write_text(prose(20_000))
    recovery = {"sequence_length": 64, "text": str(other)}
    assert gathered(asked(cut, model, recovery=recovery)).recovery is not None


def test_what_identifies_it_are_its_weights(cut: Path, model: Path, text: Path) -> None:
    def identity() -> str:
        adopted = gathered(asked(cut, model)).adopted
        assert adopted is not None
        return adopted.identity

    before = identity()
    (cut / "README.md").write_text("a card")
    assert identity() == before
    save_file({"a": torch.zeros(2)}, cut / "model.safetensors")
    seal(cut, model)
    assert identity() != before


def test_what_is_no_finished_checkpoint_is_refused(cut: Path, model: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "absent", model, cut / "config.json"):
        assert "not a checkpoint of this program" in refused(asked(place, model), CheckpointError)
    (cut / "_SUCCESS").unlink()
    assert "name a checkpoint that is finished" in refused(asked(cut, model), CheckpointError)


def test_a_checkpoint_that_changed_is_refused(cut: Path, model: Path) -> None:
    save_file({"a": torch.zeros(2)}, cut / "model.safetensors")
    assert "model.safetensors not as" in refused(asked(cut, model), CheckpointError)


def test_another_base_is_refused(cut: Path, model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=1)
    message = refused(asked(cut, other), ConfigError)
    assert "made from another one (model.safetensors differs)" in message
    assert str(model) in message
    shutil.rmtree(other)


def test_a_base_in_another_place_is_compared_by_what_can_be(cut: Path, model: Path) -> None:
    path = cut / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["base_files"]["model.safetensors"] = "etag:1"
    path.write_text(json.dumps(manifest))
    assert gathered(asked(cut, model)).adopted is not None
    manifest["base_files"]["config.json"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "config.json differs" in refused(asked(cut, model), ConfigError)


def test_other_matrices_are_refused(cut: Path, model: Path, text: Path) -> None:
    calibration = CalibrationConfig(text=str(text))
    describe(cut, model, calibration=calibration, targets=TargetsConfig())
    seal(cut, model)
    assert "no matrix layers.0.self_attn.v_proj" in refused(asked(cut, model), CheckpointError)
    describe(
        cut, model, calibration=calibration, targets=TargetsConfig(ignore=("q_proj", "v_proj"))
    )
    seal(cut, model)
    assert "use `svdllm recover`" in refused(asked(cut, model), ConfigError)


def test_an_output_inside_the_checkpoint_is_refused(cut: Path, model: Path) -> None:
    request = asked(cut, model, output=cut / "out")
    assert "is inside the checkpoint" in refused(request, ConfigError)
