"""The order of a run, without workers."""

from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.compress
from schemas.errors import ConfigError


def test_a_run_that_goes_on_asks_no_disk_for_what_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = SimpleNamespace(compression=SimpleNamespace(bytes_after=7))
    found = {0.2: published, 0.4: None}
    asked: list[int] = []

    def refuse(disk: object, config: object, published: int = 0) -> None:
        asked.append(published)
        raise ConfigError("full")

    monkeypatch.setattr(pipeline.compress, "find_published", lambda run, ratio: found[ratio])
    monkeypatch.setattr(pipeline.compress, "require_disk", refuse)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(ratio=tuple(found)), plan=SimpleNamespace(disk=0)
    )
    with pytest.raises(ConfigError, match="full"):
        vars(pipeline.compress)["_stages"](run)
    assert asked == [7]
