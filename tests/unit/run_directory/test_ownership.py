"""One driver in a run directory: who may take it, and who has lost it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run_directory import ownership
from pipeline.run_directory.ownership import owned, take
from schemas.errors import OwnershipError, StorageError, VerificationError
from schemas.location import Location, Url
from workers.storage.places import files_below, remove_below, write


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, url: Url) -> Location:
    """Where the owner of a run directory is written down, beside its record."""
    root = tmp_path / "run" if request.param == "folder" else url
    write(root / "run.json", b"{}")
    return root / "owner"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took a place before did so on another machine; a lease lasts a moment."""
    machines = iter("ABCD")
    monkeypatch.setattr(ownership, "_machine", lambda: next(machines))
    monkeypatch.setattr(ownership, "LEASE_S", 0.3)


def test_a_place_is_taken_and_left(place: Location) -> None:
    for _ in range(3):
        with owned(place, pytest.fail) as mine:
            mine.require()


def test_a_driver_at_work_keeps_others_out(place: Location) -> None:
    refused = pytest.raises(OwnershipError, match=r"process \d+ on .* name another one")
    with owned(place, pytest.fail), refused:
        take(place, pytest.fail)


def test_one_that_was_killed_is_replaced_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.run_directory.ownership import take;"
        "take(Path(sys.argv[1]), print)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    take(tmp_path, pytest.fail).require()


@pytest.mark.usefixtures("elsewhere")
def test_one_on_another_machine_is_replaced_when_its_beat_stands_still(place: Location) -> None:
    late = take(place, pytest.fail)
    late.beat(b"1")
    said: list[str] = []
    with owned(place, said.append) as mine:
        assert "looking for 0.3 s whether it is still there" in said[0]
        mine.require()
        with pytest.raises(OwnershipError, match="publishes nothing"):
            late.require()


@pytest.mark.usefixtures("elsewhere")
def test_one_on_another_machine_that_shows_itself_stays(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.01)
    monkeypatch.setattr(ownership, "LEASE_S", 30.0)
    with owned(place, pytest.fail) as first:
        with pytest.raises(OwnershipError, match="is at work in this folder"):
            take(place, lambda _: None)
        first.require()


def test_the_slower_of_two_that_take_it_is_refused(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw that it was free; the file of the next number is created once."""
    latest = ownership._latest

    def race(where: Location) -> int:
        found = latest(where)
        monkeypatch.setattr(ownership, "_latest", latest)
        take(place, pytest.fail)
        return found

    monkeypatch.setattr(ownership, "_latest", race)
    with pytest.raises(OwnershipError, match="is at work"):
        take(place, pytest.fail)


def test_a_place_that_is_gone_is_lost(place: Location) -> None:
    with owned(place, pytest.fail) as mine:
        remove_below(place)
        with pytest.raises(OwnershipError):
            mine.require()


def test_a_store_that_fails_does_not_hide_why_a_run_ended(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Location) -> int:
        raise StorageError("the store did not do it")

    def work() -> None:
        with owned(place, pytest.fail):
            monkeypatch.setattr(ownership, "_latest", fail)
            raise VerificationError("a checksum")

    with pytest.raises(VerificationError, match="a checksum"):
        work()


@pytest.mark.usefixtures("elsewhere")
def test_one_that_has_lost_the_place_leaves_it_alone(tmp_path: Path) -> None:
    """Even if its new owner has done nothing yet."""
    place = tmp_path / "run" / "owner"
    late = take(place, pytest.fail)
    mine = take(place, lambda _: None)
    late.release()
    mine.require()


def test_a_place_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    place = tmp_path / "run" / "owner"
    mine = take(place, pytest.fail)
    (tmp_path / "run").rename(tmp_path / "run.1")  # set aside
    mine.release()
    assert not place.parent.exists()


def test_nothing_is_left_where_nothing_was_done(tmp_path: Path) -> None:
    with owned(tmp_path / "run" / "owner", pytest.fail):
        assert files_below(tmp_path)
    assert list(tmp_path.iterdir()) == []
