"""Where the runs of a night may be."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.request.nightly import NightlyConfig


def config(output: str, run_dir: str | None = None) -> NightlyConfig:
    asked = {"watch": "org/name", "output": output, "ratio": 0.2, "run_dir": run_dir}
    return NightlyConfig.model_validate(asked)


@pytest.mark.parametrize("output", ["out", "s3://bucket/nightly"])
def test_they_are_below_the_prefix(output: str) -> None:
    assert str(config(output).runs) == f"{output}/runs"


@pytest.mark.parametrize("run_dir", ["out/runs", "elsewhere", "s3://bucket/runs"])
def test_other_places_may_be_named(run_dir: str) -> None:
    assert str(config("out", run_dir).runs) == run_dir


@pytest.mark.parametrize(
    "run_dir", [".", "out", "out/checkpoints", "out/checkpoints/deep", "out/catalog"]
)
def test_they_are_kept_apart_from_what_is_published(run_dir: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="kept apart from the runs; name another --run-dir"):
        config(str(tmp_path / "out"), str(tmp_path / run_dir))
