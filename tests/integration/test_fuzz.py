"""A few mutations through the whole command: no traceback, no mark of success, no stray file."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.compress import compress
from schemas.errors import CheckpointError
from tests.campaigns.fuzz import cases, command
from tests.campaigns.fuzz_cases import KINDS, write_base
from tests.integration.support import ask, item_sums
from tests.models import tiny_model


@pytest.mark.parametrize(
    "kind", ["weights: offsets", "index: paths", "folder: links", "config: JSON", "text: none"]
)
def test_a_command_refuses_what_is_wrong(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "base")
    monkeypatch.setattr("tests.campaigns.fuzz.KINDS", {kind: KINDS[kind]})
    [(_, outcome)] = [(k, command(case)) for k, case in cases(tmp_path / "base", tmp_path, 1, 0)]
    assert outcome.word == "refused", outcome.said
    assert outcome.said.count("error: ") == 1


def test_a_weight_that_is_not_finite_is_found_by_its_worker(
    local_ray: None, text: Path, tmp_path: Path
) -> None:
    """It cannot be known before; nothing has been computed with it."""
    model = tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = ask(model, text, tmp_path / "out")
    expected = r"model\.safetensors: model\.norm\.weight holds NaN or infinite values"
    with pytest.raises(CheckpointError, match=expected):
        compress(config)
    assert not (tmp_path / "out").exists()
    assert item_sums(config.run_folder, "moments") == {}
