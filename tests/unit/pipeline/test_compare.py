"""What a comparison refuses before any work."""

from pathlib import Path
from typing import Any

import pytest

import pipeline.compare
from pipeline.compare import compare
from schemas.errors import CompressorError
from schemas.request.comparison import ComparisonConfig
from tests.prose import prose


@pytest.fixture(name="fields")
def fields_(tmp_path: Path) -> dict[str, Any]:
    (text := tmp_path / "text.txt").write_text(prose(2_000))
    return {"model": "unused", "output": tmp_path / "out", "evaluate": (str(text),)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"evaluate": ("wikitext2", "typo.txt")}, "typo.txt: not found"),
        ({"schemes": "W8A16"}, "fewer bits need compressed-tensors"),
        ({"tasks": {"names": "choice", "folder": "nowhere"}}, "tasks.folder nowhere: no such"),
    ],
)
def test_what_comes_last_is_looked_at_first(
    fields: dict[str, Any], asked: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(pipeline.compare, "look", begin)
    monkeypatch.setattr("workers.quantisation.find_spec", lambda name: None)
    with pytest.raises(CompressorError, match=message):
        compare(ComparisonConfig.model_validate(fields | asked))
