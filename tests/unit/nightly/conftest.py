"""A training run whose checkpoints nights compress, with a fake compression."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.nightly import catalog
from pipeline.nightly.night import Night, nightly
from schemas.request.nightly import CatalogRow, NightlyConfig
from tests.nights import FakeCompress, write_checkpoint


class Training:
    """A folder of checkpoints, and nights over it."""

    def __init__(self, folder: Path, template: Path, text: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.prefix: Path = folder / "out"
        self.compress = FakeCompress()
        self._template = template
        self._text = {"calibration": {"text": str(text)}, "evaluation": {"text": str(text)}}

    def step(self, number: int, version: int | None = None) -> Path:
        folder = self.source / f"checkpoint-{number}"
        return write_checkpoint(self._template, folder, number if version is None else version)

    def config(self, **settings: Any) -> NightlyConfig:
        defaults = {"watch": str(self.source), "output": self.prefix, "ratio": 0.2, "max": 9}
        return NightlyConfig.model_validate(defaults | self._text | settings)

    def night(self, **settings: Any) -> Night:
        return nightly(self.config(**settings), self.compress)

    @property
    def rows(self) -> list[CatalogRow]:
        return catalog.read(self.prefix)

    def events(self) -> list[tuple[str, str]]:
        return [(row.event, row.name.removeprefix("checkpoint-")) for row in self.rows]


@pytest.fixture
def training(tmp_path: Path, model: Path, text: Path) -> Training:
    return Training(tmp_path, model, text)


def did(night: Night) -> list[tuple[str, str]]:
    return [(row.event, row.name.removeprefix("checkpoint-")) for row in night.rows]
