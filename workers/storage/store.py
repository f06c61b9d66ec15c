"""The run directory, a folder or a prefix in an object store: immutable items, committed once.

Content is written under a name that is private to the attempt. Then the item's record is created,
by one exclusive write, with the name and the checksum of that file; only files named by a record
count. So if two workers make the same item, one wins; nobody changes committed items; and the files
that a killed run leaves without a record are removed by the next run.
"""

import contextlib
import hashlib
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue
from safetensors.torch import load as deserialize
from torch import Tensor

from schemas.errors import DamagedError
from schemas.location import Location, Url
from schemas.run.identity import Record
from workers.storage.files import link, sync
from workers.storage.models import read_model
from workers.storage.places import (
    at_once,
    create,
    download,
    files_below,
    read_bytes,
    remove,
    remove_below,
    size_of,
    upload,
)
from workers.storage.tensorfile import Entry, write_tensors
from workers.storage.traffic import moved

Facts = dict[str, JsonValue]
_ATTEMPT = re.compile(r"\.[0-9a-f]{12}\.\w+$")


class Item(NamedTuple):
    """The content of a committed item."""

    tensors: dict[str, Tensor]
    facts: Facts


class Store:
    """Items below `root`, by key; the record of an item is `<root>/records/<key>.json`."""

    def __init__(self, root: Location) -> None:
        self.root = root

    def record(self, key: str) -> Record | None:
        """Return the record of a committed item; None if it is absent or its file has another size.

        A damaged record counts as absent: its item is made anew.
        """
        if (record := self._read(key)) is None:
            return None
        try:
            size = size_of(self.root / record.file)
        except FileNotFoundError:
            return None
        return record if record.bytes == size else None

    def place(self, key: str) -> Location:
        """Return the place of a committed item's content. Raises DamagedError if it is absent."""
        return self.root / self._committed(key).file

    def place_files(self, keys: Mapping[str, str], folder: Path) -> None:
        """Put items into a local folder (file name -> key), unless the files already exist.

        Items that are local files are linked.
        """
        places = {n: self.place(key) for n, key in keys.items() if not (folder / n).exists()}
        for name, place in places.items():
            if isinstance(place, Path):
                link(place, folder / name)
        stored = {name: place for name, place in places.items() if isinstance(place, Url)}
        download(stored, folder)
        for name in stored:
            sync(folder / name)

    def commit(self, key: str, content: Iterable[Entry], facts: Facts | None = None) -> Record:
        """Write the item; if it exists, or another writer was faster, the existing one stays."""
        if (there := self.record(key)) is not None:
            return there
        attempt = uuid.uuid4().hex[:12]
        place = self.root / Record.file_of(key, attempt)
        with _new(place) as path:
            written = write_tensors(path, content)
        record = Record(
            key=key,
            attempt=attempt,
            sha256=written.sha256,
            bytes=written.bytes,
            facts=facts or {},
        ).sealed()
        while not create(self._record_place(key), record.model_dump_json().encode()):
            if (there := self.record(key)) is not None:
                remove(place)
                return there
            self.forget(key)  # a damaged one
        moved("written", _kind(key), record.bytes)
        return record

    def load(self, key: str) -> Item:
        """Read an item once and check it. Raises DamagedError if it is absent or damaged."""
        record = self._committed(key)
        content = read_bytes(self.root / record.file)
        moved("read", _kind(key), len(content))
        if hashlib.sha256(content).hexdigest() != record.sha256:
            self.forget(key)
            raise DamagedError(
                f"{self.root / key}: its content is not what was written (SHA-256 differs); "
                "start the same command again and it will be computed anew"
            )
        return Item(deserialize(content), record.facts)

    def forget(self, key: str) -> None:
        """Remove an item's record, so that the item is made anew."""
        remove(self._record_place(key))

    def discard(self, prefix: str) -> None:
        """Forget every item below a key prefix, so that it is made anew."""
        remove_below(self.root / f"records/{prefix}")
        remove_below(self.root / prefix)

    def records(self, prefix: str) -> Iterator[Record]:
        """Yield the records of the committed items below a key prefix, by key.

        The sizes of their files come from one listing, made after all the records are read.
        """
        below = f"{prefix}/" if prefix else ""
        names = files_below(self.root / f"records/{prefix}".rstrip("/"))
        keys = sorted(f"{below}{n.removesuffix('.json')}" for n in names if n.endswith(".json"))
        found = [record for record in at_once(self._read, keys) if record is not None]
        sizes = files_below(self.root / prefix if prefix else self.root) if found else {}
        for record in found:
            if sizes.get(record.file.removeprefix(below)) == record.bytes:
                yield record

    def sweep(self, prefix: str) -> None:
        """Remove files below a key prefix that no record names: left by attempts that ended."""
        named = {record.file for record in self.records(prefix)}
        for name in files_below(self.root / prefix):
            if _ATTEMPT.search(name) and f"{prefix}/{name}" not in named:
                remove(self.root / f"{prefix}/{name}")

    def _read(self, key: str) -> Record | None:
        """Read the record of an item, without its file; None if it is absent or damaged."""
        record = read_model(self._record_place(key), Record)
        return record if record and record.key == key and record == record.sealed() else None

    def _committed(self, key: str) -> Record:
        record = self.record(key)
        if record is None:
            raise DamagedError(
                f"{self.root / key}: not there or cut short; start the same command again"
            )
        return record

    def _record_place(self, key: str) -> Location:
        return self.root / f"records/{key}.json"


def _kind(key: str) -> str:
    return key.partition("/")[0]


@contextlib.contextmanager
def _new(place: Location) -> Iterator[Path]:
    """Give a local file to write, which is then put at `place`; a failed write leaves nothing."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield place
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        sync(place.parent)
        return
    with tempfile.TemporaryDirectory(prefix="svdllm-") as name:
        yield Path(name) / "item"
        upload(Path(name) / "item", place)
