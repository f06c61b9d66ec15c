"""What is found where a checkpoint is to be published."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages.publish import find_published
from schemas.errors import CheckpointError
from schemas.request.config import RunConfig


@pytest.mark.parametrize("description", [None, "{", "{}"])
def test_a_checkpoint_without_a_description_is_refused_with_its_file(
    description: str | None, tmp_path: Path
) -> None:
    """Such as a base that was quantised."""
    (tmp_path / "_SUCCESS").touch()
    if description is not None:
        (tmp_path / "compression.json").write_text(description)
    run: Any = SimpleNamespace(config=RunConfig(model="m", output=tmp_path, ratio=(0.2,)))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/compression\.json: not "):
        find_published(run, 0.2)
