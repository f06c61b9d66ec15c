"""A request that is accepted, and what is said of one that is not."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.request.preflight import check
from schemas.errors import InputError
from schemas.request.config import RunConfig


@pytest.fixture
def request_for(model: Path, text: Path, tmp_path: Path) -> Any:
    """A request that `check` accepts, but for the fields given."""

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
