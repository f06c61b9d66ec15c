"""What the documentation and the shipped configurations say is what the schemas say."""

import runpy
from pathlib import Path

import yaml

from schemas.request.config import RunConfig
from tests.documents import ROOT


def test_the_reference_lists_every_setting_with_its_default() -> None:
    made = runpy.run_path(str(ROOT / ".ci/reference.py"))["page"]()
    written = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert made == written, "run `make reference`"


def test_shipped_configurations_parse() -> None:
    shipped = [*(ROOT / "deploy").glob("**/compress*.yaml")]
    assert shipped
    for path in shipped:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = RunConfig.model_validate(values | {"model": "org/name", "output": Path("out")})
        assert config.ratio
