"""What the documentation and the shipped configurations say is what the schemas say."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from schemas.request.config import RunConfig

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "deploy").glob("**/compress*.yaml"))


def test_the_reference_lists_every_setting_with_its_default() -> None:
    command = [sys.executable, str(ROOT / ".ci/reference.py")]
    made = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    written = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert made.stdout == written, "run `make reference`"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configuration_parses(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = RunConfig.model_validate(values | {"model": "org/name", "output": Path("out")})
    assert config.ratio


def test_there_is_a_shipped_configuration() -> None:
    assert CONFIGS
