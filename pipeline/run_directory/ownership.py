"""One driver at a time works in a run directory.

A driver takes a place by creating the next numbered file below it, in one exclusive write; the
highest number owns the place, and keeps changing a file of its own, its beat. A driver that finds a
place taken checks whether the owner's process has gone, on the same machine, or whether its beat
stands still for LEASE_S by the checking driver's clock: no two clocks are compared. If so, it takes
the next number. An owner that slept for too long finds a number higher than its own, and must stop.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from schemas.errors import CompressorError, InputError, OwnershipError, StorageError
from schemas.location import Location
from schemas.run.record import Owner
from workers.storage.models import read_model
from workers.storage.places import create, files_below, read_bytes, write

BEAT_S = 5.0
LEASE_S = 30.0
_RELEASED = b"released"


class Ownership:
    """A driver's ownership of one place."""

    def __init__(self, place: Location, number: int) -> None:
        self._place, self._number = place, number

    def require(self) -> None:
        """Raises OwnershipError if another driver has taken the place since."""
        if (latest := _latest(self._place)) != self._number:
            who = _name(_read(self._place, latest))
            raise OwnershipError(
                f"{self._place}: {who} has taken it, because nothing was heard of this driver for "
                f"{LEASE_S:g} s; this one stops, and publishes nothing"
            )

    def beat(self, content: bytes) -> None:
        """Show that this driver is alive."""
        write(_beat_place(self._place, self._number), content)

    def release(self) -> None:
        """Leave the place to others; if its folder holds nothing else, remove the folder too.

        A place that this driver has lost is left as it is.
        """
        place = self._place
        if _latest(place) != self._number:
            return
        if isinstance(place, Path) and list(place.parent.iterdir()) == [place]:
            shutil.rmtree(place)
            place.parent.rmdir()
        else:
            self.beat(_RELEASED)


@contextlib.contextmanager
def owned(place: Location, note: Callable[[str], None]) -> Iterator[Ownership]:
    """Own a place while the context is open; `note` gets the reason for a wait.

    Raises OwnershipError if another driver works there. If another driver has taken the place
    since, OwnershipError replaces any other error, which that driver's removals may have caused.
    """
    ownership = take(place, note)
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_S):
            count += 1
            with contextlib.suppress(CompressorError, OSError):  # the next one may get through
                ownership.beat(str(count).encode())

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield ownership
    except CompressorError:
        with contextlib.suppress(InputError, StorageError, OSError):  # the first error is raised
            ownership.require()
        raise
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(CompressorError, OSError):  # then others wait for LEASE_S
            ownership.release()


class LastOwner(NamedTuple):
    """Who took a place last, since when, and whether that driver is known to have ended."""

    words: str
    since: str
    ended: bool


def last_owner(place: Location) -> LastOwner:
    """Say who took a place last; a driver of another machine that was killed may seem to live."""
    if not (latest := _latest(place)):
        return LastOwner("nobody", "", True)
    owner = _read(place, latest)
    ended = _beat(place, latest) == _RELEASED or _has_gone(owner) is True
    words = f"{_name(owner).removeprefix('another ')}{', which has ended' if ended else ''}"
    return LastOwner(words, owner.since if owner else "", ended)


def take(place: Location, note: Callable[[str], None]) -> Ownership:
    """Own a place, with no beat yet. Raises OwnershipError if another driver works there."""
    while True:
        latest = _latest(place)
        if latest:
            _require_abandoned(place, latest, note)
        number = latest + 1
        if create(place / f"{number}.json", _myself().model_dump_json().encode()):
            return Ownership(place, number)


def _require_abandoned(place: Location, number: int, note: Callable[[str], None]) -> None:
    """Return once it is certain that the owner has gone. Raises OwnershipError if it has not."""
    before = _beat(place, number)
    if before == _RELEASED:
        return
    owner = _read(place, number)
    if (gone := _has_gone(owner)) is not None:
        if not gone:
            raise _taken(place, owner)
        return
    note(f"{place}: taken by {_name(owner)}; looking for {LEASE_S:g} s whether it is still there")
    end = time.monotonic() + LEASE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, LEASE_S / 10))
        if (now := _beat(place, number)) != before:
            if now == _RELEASED:
                return
            raise _taken(place, owner)


def _has_gone(owner: Owner | None) -> bool | None:
    """Whether a driver's process has ended; None if it is one of another machine."""
    if owner is None or owner.machine != _machine():
        return None
    return _started(owner.pid) != owner.started


def _taken(place: Location, owner: Owner | None) -> OwnershipError:
    return OwnershipError(
        f"{place}: {_name(owner)} is at work in this folder; wait for its end, stop it, or name "
        "another one"
    )


def _latest(place: Location) -> int:
    """Return the highest number taken; 0 if none is."""
    names = (name.removesuffix(".json") for name in files_below(place) if name.endswith(".json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _read(place: Location, number: int) -> Owner | None:
    return read_model(place / f"{number}.json", Owner)


def _beat(place: Location, number: int) -> bytes | None:
    try:
        return read_bytes(_beat_place(place, number))
    except FileNotFoundError:
        return None


def _beat_place(place: Location, number: int) -> Location:
    return place / f"{number}.beat"


def _name(owner: Owner | None) -> str:
    if owner is None:
        return "another driver"
    return f"another driver (process {owner.pid} on {owner.host}, since {owner.since})"


def _myself() -> Owner:
    pid = os.getpid()
    return Owner(
        machine=_machine(),
        host=socket.gethostname(),
        pid=pid,
        started=_started(pid) or 0,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        attempt=uuid.uuid4().hex,
    )


def _machine() -> str:
    """Return what sets apart one boot of one machine, and one container's process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
