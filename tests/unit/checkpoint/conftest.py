"""A tiny checkpoint to spoil, and what is said of one that is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import CheckpointError
from tests.models import tiny_model
from workers.model.inspection import inspect

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("whole") / "base")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of one tiny checkpoint."""
    return Path(shutil.copytree(whole, tmp_path / "base"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        inspect(folder)
    return str(caught.value)


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json in place; None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
