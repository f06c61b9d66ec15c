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


def damage(path: Path) -> None:
    """Flip one bit of the last byte, which is of a tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
