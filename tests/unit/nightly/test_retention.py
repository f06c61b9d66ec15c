"""What a night removes: older outputs and runs that are of no more use, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.nightly.retention import remove_run
from schemas.errors import StorageFullError
from schemas.location import Location
from tests.nights import Killed, kill
from tests.unit.nightly.conftest import Training, did
from workers.storage.places import files_below, folders_in, remove_below, write


def test_retention_keeps_the_newest_published_and_rejected_and_removes_runs(
    training: Training,
) -> None:
    for number in (1, 2, 3, 4):
        training.step(number)
    training.compress.increases |= {"checkpoint-1": 0.5, "checkpoint-2": 0.5}
    training.night(gate={"perplexity": 0.05}, keep=1)
    kept = [folder.rpartition("-")[0] for folder in folders_in(training.prefix / "checkpoints")]
    assert sorted(kept) == ["checkpoint-2", "checkpoint-4"]
    assert folders_in(training.prefix / "runs") == []
    removed = [row.name for row in training.rows if row.event == "removed"]
    assert sorted(removed) == ["checkpoint-1", "checkpoint-3"]
    assert did(training.night(gate={"perplexity": 0.05}, keep=1)) == []


def test_a_full_disk_gets_room_before_anything_is_compressed(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
    training.night()
    training.step(3)
    training.compress.failures["checkpoint-3"] = StorageFullError("full")
    with pytest.raises(StorageFullError):
        training.night(keep=1)
    [folder] = folders_in(training.prefix / "checkpoints")
    assert folder.startswith("checkpoint-2-")


def test_what_stays_is_said_once(training: Training, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        training.step(number)
    training.night()
    [first, _] = folders_in(training.prefix / "checkpoints")
    [manifest] = Path(str(training.prefix / "checkpoints" / first)).glob("*/manifest.json")
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"output": "of another"}))
    training.night(keep=1)
    assert caplog.text.count("not the output that the catalogue names; it stays") == 1


def test_runs_in_the_home_folder_are_removed(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    training.step(1)
    training.compress.during = lambda _: seen.extend(folders_in(tmp_path / "runs"))
    seen: list[str] = []
    training.night(run_dir="~/runs")
    assert len(seen) == 1
    assert folders_in(tmp_path / "runs") == []


@pytest.mark.parametrize("change", ["gone", "other files", "other method"])
def test_the_run_of_what_the_source_has_no_longer_is_removed(
    training: Training, change: str
) -> None:
    """But for a source that may not be mounted."""
    folder = training.step(1)
    kill(training.compress, training.night)
    runs = training.prefix / "runs"
    [run] = folders_in(runs)
    hidden = folder.rename(training.prefix / "not mounted")
    assert did(training.night()) == []
    assert folders_in(runs) == [run]
    hidden.rename(folder)
    kill(training.compress, training.night)
    assert folders_in(runs) == [run]
    if change != "other method":
        shutil.rmtree(folder)
        training.step(2 if change == "gone" else 1, version=3)
    training.night(method="svd-llm" if change == "other method" else "two-sided")
    assert folders_in(runs) == []


def test_without_retention_all_outputs_stay(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
        training.night()
    assert len(folders_in(training.prefix / "checkpoints")) == 2


def test_dots_in_the_name_of_a_checkpoint_lead_nowhere(training: Training) -> None:
    for number in (1, 2):
        training.step(number).rename(training.source / f"epoch..{number}")
    training.night()
    training.night(keep=1)
    [folder] = folders_in(training.prefix / "checkpoints")
    assert folder.startswith("epoch..2-")


def kill_at(last: Location, run: Path, output: Path) -> None:
    """Remove a run, but for being killed when all that is below a place is to go."""

    def die(place: Location) -> None:
        if place == last:
            raise Killed
        remove_below(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.nightly.retention.remove_below", die)
        with pytest.raises(Killed):
            remove_run(run, output)


def test_a_run_that_ended_in_an_earlier_round_is_removed(tmp_path: Path) -> None:
    """Its only record is that of a round, whose checkpoint is in the run directory."""
    run, output = tmp_path / "run", tmp_path / "output"
    round_1 = run / "rounds" / "1"
    record = json.dumps({"outputs": {str(round_1 / "checkpoint"): ""}})
    write(round_1 / "run" / "run.json", record.encode())
    write(round_1 / "checkpoint" / "config.json", b"")
    write(run / "progress.json", b"")

    kill_at(round_1, run, output)
    left = [path for path in run.rglob("*") if path.is_file()]
    assert left == [round_1 / "run" / "run.json"]
    remove_run(run, output)
    assert not run.exists()
    write(run / "rounds" / "1" / "run" / "run.json", json.dumps({"outputs": {"/x": ""}}).encode())
    remove_run(run, output)
    assert run.exists()


def test_a_removal_of_a_run_that_is_killed_is_resumed(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    write(run / "run.json", json.dumps({"outputs": {str(output): ""}}).encode())
    for name in ("progress.json", "owner/1.json", "spectra/0123/a.safetensors"):
        write(run / name, b"")

    kill_at(run, run, output)
    assert [path.name for path in run.iterdir()] == ["run.json"]
    remove_run(run, output)
    assert not run.exists()


def test_what_the_nights_did_not_make_is_not_removed(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
        training.night()
    output = training.prefix / str(training.rows[1].path)
    manifest = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps(manifest | {"output": "another"}))
    (training.prefix / "runs" / "mine").mkdir(parents=True)
    before = files_below(output)
    night = training.night(keep=1)
    assert did(night) == []
    assert files_below(output) == before
    assert (training.prefix / "runs" / "mine").is_dir()
