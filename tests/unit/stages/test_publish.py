"""What is found where a checkpoint is to be published, and how it gets there."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages.publish import find_published, publish_output
from pipeline.stages.staging import staged
from schemas.errors import CheckpointError, StorageFullError
from schemas.location import Url
from schemas.request.config import RunConfig
from workers.storage import files


@pytest.mark.parametrize("description", [None, "{", "{}"])
def test_a_checkpoint_without_a_description_is_refused_with_its_file(
    description: str | None, tmp_path: Path
) -> None:
    """Such as a base that was quantised."""
    (tmp_path / "_SUCCESS").touch()
    if description is not None:
        (tmp_path / "compression.json").write_text(description)
    run: Any = SimpleNamespace(config=RunConfig(model="m", output=tmp_path, ratio=(0.2,)))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/compression\.json: not "):
        find_published(run, 0.2)


def test_weights_of_a_run_in_a_store_are_staged_beside_their_output(tmp_path: Path) -> None:
    """The system's temporary folder may be too small, and then they would be copied again."""
    place = tmp_path / "new" / "out"
    run = SimpleNamespace(store=SimpleNamespace(root=Url("s3://bucket/run")))
    output: Any = SimpleNamespace(run=run, place=place)
    with staged(output):
        assert output.staging.parents[1] == place.parent
    assert not list(place.parent.iterdir())


def test_the_copy_of_a_killed_run_on_another_file_system_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied beside its place and then renamed; the copy has one name for each run."""
    staging, folder = tmp_path / "run" / "staging", tmp_path / "out" / "ratio-0.20"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(b"weights")
    publish, copied = files.publish, list[Path]()

    def between_file_systems(temporary: Path, path: Path) -> None:
        if temporary == staging:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        publish(temporary, path)

    def killed(_: Path, beside: Path) -> None:
        copied.append(beside)
        raise OSError(errno.EIO, "killed")

    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(files, "publish", between_file_systems)
    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_folder", killed)
        with pytest.raises(OSError, match="killed"):
            publish_output(staging, folder, "id", "run")
    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_folder", full)
        with pytest.raises(StorageFullError, match=f"output {folder}: No space left; .* 7 bytes"):
            publish_output(staging, folder, "id", "run")
    copied[0].mkdir()
    (copied[0] / "half").touch()
    assert publish_output(staging, folder, "id", "run")
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "_SUCCESS"}
