"""A request that is accepted, and what is said of one that is not."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.request.preflight import check
from schemas.errors import InputError
from schemas.request.config import RunConfig
from tests.models import tiny_model
from tests.prose import prose


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture
def request_for(model: Path, tmp_path: Path) -> Any:
    """A request that `check` accepts, but for the fields given."""
    text = tmp_path / "prose.txt"
    text.write_text(prose(4_000))

    def made(**fields: Any) -> RunConfig:
        calibration = {"text": str(fields.pop("text", text))}
        defaults = {"model": str(model), "output": tmp_path / "out", "ratio": 0.3}
        return RunConfig.model_validate(defaults | {"calibration": calibration} | fields)

    return made


def refusal(config: RunConfig, kind: type[InputError]) -> str:
    with pytest.raises(kind) as caught:
        check(config)
    message = str(caught.value)
    assert message.isprintable()
    return message
