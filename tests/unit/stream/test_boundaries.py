"""Which rows between two waves are stored, and what it takes to know."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.stream.boundaries import Boundary
from pipeline.stream.schedule import micro_batches
from schemas.location import Url
from workers.storage import places
from workers.storage.store import Store
from workers.storage.tensorfile import entries

BATCHES = micro_batches(torch.zeros(12, 4, dtype=torch.int64), 1, 1)


def test_rows_are_read_in_place_of_others_once_those_have_arrived(tmp_path: Path) -> None:
    """So an error of a worker that computes the others is not lost."""
    shard, boundary = mock.Mock(), Boundary(Store(tmp_path), "0123", 2, "gradient")
    read = boundary.instead(shard)(BATCHES[1], "a reference")
    assert read is shard.read.remote.return_value
    shard.read.remote.assert_called_once_with(boundary.key(BATCHES[1]), "a reference")


def test_an_object_store_is_asked_for_each_record_once_and_for_two_lists(
    url: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Url] = []
    opened = places._opened

    def counted(place: Url) -> Any:
        asked.append(place)
        return opened(place)

    boundary = Boundary(Store(url), "0123", 2)
    assert boundary.missing(BATCHES) == BATCHES
    for batch in BATCHES[:-1]:
        boundary.store.commit(boundary.key(batch), entries({"rows": torch.zeros(1)}))
    monkeypatch.setattr(places, "_opened", counted)
    assert boundary.missing(BATCHES) == BATCHES[-1:]
    assert len(asked) == len(BATCHES) - 1 + 2
    assert not boundary.holds(BATCHES)
    assert boundary.holds(BATCHES[:-1])
