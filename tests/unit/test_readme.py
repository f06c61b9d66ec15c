"""What the README and the shipped configurations say is what the schemas say."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.configuration import FLAGS
from schemas.config import RunConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "deploy").glob("**/compress*.yaml"))


def settings(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """A row of the README's table for every setting, in the order of the schema."""
    rows = []
    for name, field in schema.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += settings(kind, f"{prefix}{name}.")
            continue
        path = f"{prefix}{name}"
        flag = FLAGS.get(path, f"--{name.replace('_', '-')}" if not prefix else "")
        default = "" if field.is_required() or field.default is None else f"`{field.default}`"
        shown = f"`{flag}`" if flag else ""
        rows.append(f"| `{path}` | {shown} | {default} | {field.description} |")
    return rows


def test_readme_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(settings(RunConfig)) in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configuration_parses(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = RunConfig.model_validate(values | {"model": "org/name", "output": Path("out")})
    assert config.ratio


def test_there_is_a_shipped_configuration() -> None:
    assert CONFIGS
