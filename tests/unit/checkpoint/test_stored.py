"""A checkpoint in an object store, verified from here: no large weight is copied unasked."""

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.location import Url
from tests.unit.checkpoint.conftest import WEIGHTS
from workers.checkpoint import stored
from workers.checkpoint.stored import at_hand
from workers.checkpoint.verify import verify_checkpoint
from workers.storage import places
from workers.storage.files import file_sha256


@pytest.fixture
def url(checkpoint: Path, url: Url) -> Url:
    for path in checkpoint.iterdir():
        places.upload(path, url / path.name)
    return url


@pytest.mark.usefixtures("loads_here")
def test_large_weights_stay_in_a_store(
    url: Url, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "UNASKED", 100_000)
    assert (checkpoint / WEIGHTS).stat().st_size > 100_000
    with at_hand(url) as (folder, there):
        assert there == {WEIGHTS: url / WEIGHTS}
        outline = (folder / WEIGHTS).stat()
        assert outline.st_size == (checkpoint / WEIGHTS).stat().st_size
        assert outline.st_blocks * 512 < 50_000
        checks = verify_checkpoint(folder, published=False, stored=there)
    assert [check.passed for check in checks] == [True, True, True, True, True, None]
    assert "--work-dir" in checks[-1].detail


def test_a_changed_byte_in_a_store_is_found(
    url: Url, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "UNASKED", 0)
    monkeypatch.setattr(stored, "_PART", 1000)
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[-1] ^= 1
    places.write(url / WEIGHTS, bytes(content))
    with at_hand(url) as (folder, there):
        first, *_ = verify_checkpoint(folder, published=False, stored=there)
    assert first.passed is False
    assert first.files == (WEIGHTS,)


def test_weights_are_fetched_into_a_folder_that_is_named(
    url: Url, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "UNASKED", 0)
    with at_hand(url, work_dir=tmp_path) as (folder, there):
        assert folder.parent == tmp_path
        assert not there
        assert file_sha256(folder / WEIGHTS) == file_sha256(checkpoint / WEIGHTS)
    assert not folder.exists()
    with pytest.raises(ConfigError, match="no such folder"), at_hand(url, None, tmp_path / "no"):
        pass
