"""Files of committed items, for tests that look at them or damage them."""

from pathlib import Path

from schemas.location import Location
from workers.storage.store import Store


def local(place: Location) -> Path:
    """A place on this machine, if nothing was asked for in an object store."""
    assert isinstance(place, Path)
    return place


def file_of(store: Store, key: str) -> Path:
    """The file of a committed item."""
    return local(store.place(key))
