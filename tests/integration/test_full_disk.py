"""A run on a file system that becomes full or read-only: what it says, and how it goes on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from schemas.request.config import RunConfig
from schemas.run.identity import Record
from tests.integration.conftest import Reference
from tests.integration.processes import Command, Start
from tests.integration.small_disk import SmallDisk
from tests.integration.support import KINDS, flags, item_attempts, until, weight_sums
from tests.items import file_of, local
from workers.storage.files import file_sha256
from workers.storage.store import Store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        small = SmallDisk(tmp_path / "small", 32_000)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield small
    small.close()


@pytest.fixture
def start(local_ray: None, start: Start) -> Callable[[RunConfig], Command]:
    """Starts the command on the Ray of the tests."""
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return lambda config: start(flags(config), environment=environment)


def fill(folder: Path, free: int) -> Path:
    """A file of somebody else that leaves `free` bytes."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - free))
    return ballast


def require_intact(run_dir: Path, records: list[Record]) -> None:
    """Fails if the file of a committed item is not what was committed."""
    store = Store(run_dir)
    for record in records:
        assert file_sha256(file_of(store, record.key)) == record.sha256, record.key


def test_a_run_directory_that_becomes_full_keeps_what_is_committed(
    reference: Reference,
    disk: SmallDisk,
    start: Callable[[RunConfig], Command],
    tmp_path: Path,
) -> None:
    update = {"output": tmp_path / "out", "run_dir": disk.path / "out.run"}
    config = reference.config.model_copy(update=update)
    command = start(config)
    until(lambda: command.said("load: "), "nothing is committed yet")
    fill(disk.path, free=128 * 1024)
    assert command.wait() == 3, command.log
    assert "No space left on device" in command.log
    assert "start the same command again" in command.log
    assert "Traceback" not in command.log
    assert not local(config.output).exists()
    made = item_attempts(config.run_folder, *KINDS)
    assert made  # it became full in the middle
    assert not item_attempts(config.run_folder, "outputs")
    require_intact(local(config.run_folder), list(Store(config.run_folder).records("moments")))

    disk.resize(64_000)
    again = start(config)
    assert again.wait() == 0, again.log
    now = item_attempts(config.run_folder, *KINDS)
    assert {key: now[key] for key in made} == made
    assert weight_sums(local(config.output)) == weight_sums(local(reference.output.path))


def test_an_output_that_becomes_full_is_not_there(
    reference: Reference,
    disk: SmallDisk,
    start: Callable[[RunConfig], Command],
    tmp_path: Path,
) -> None:
    output = disk.path / "out"
    update = {"output": output, "run_dir": tmp_path / "out.run"}
    shutil.copytree(reference.config.run_folder, tmp_path / "out.run")
    config = reference.config.model_copy(update=update)
    command = start(config)
    until(lambda: command.said("truncate: "), "the weights are cut")
    ballast = fill(disk.path, free=16 * 1024)
    assert command.wait() == 3, command.log
    assert f"output {output}: No space left on device; the checkpoint needs" in command.log
    assert "Traceback" not in command.log
    assert list(disk.path.iterdir()) == [ballast]  # nothing of it, and no mark of success
    made = item_attempts(config.run_folder, *KINDS)

    ballast.unlink()
    again = start(config)
    assert again.wait() == 0, again.log
    assert item_attempts(config.run_folder, *KINDS) == made
    assert weight_sums(output) == weight_sums(local(reference.output.path))


def test_an_output_without_room_is_refused_before_anything_is_computed(
    reference: Reference,
    disk: SmallDisk,
    start: Callable[[RunConfig], Command],
    tmp_path: Path,
) -> None:
    fill(disk.path, free=16 * 1024)
    update = {"output": disk.path / "out", "run_dir": tmp_path / "out.run"}
    config = reference.config.model_copy(update=update)
    command = start(config)
    assert command.wait() == 2, command.log
    assert f"{disk.path}/out: the run needs about" in command.log
    assert "bytes there, 16,384 are free" in command.log
    assert not item_attempts(config.run_folder, *KINDS)


@pytest.mark.parametrize("which", ["run_dir", "output"])
def test_a_folder_that_is_read_only_is_refused_before_anything_is_computed(
    which: str,
    reference: Reference,
    disk: SmallDisk,
    start: Callable[[RunConfig], Command],
    tmp_path: Path,
) -> None:
    disk.read_only()
    folders = {"output": tmp_path / "out", "run_dir": tmp_path / "out.run"}
    config = reference.config.model_copy(update=folders | {which: disk.path / "here"})
    command = start(config)
    assert command.wait() == 2, command.log
    assert f"{disk.path}/here: no permission to write in {disk.path}" in command.log
    assert "load: " not in command.log
    assert not item_attempts(config.run_folder, *KINDS)
    assert list(disk.path.iterdir()) == []
