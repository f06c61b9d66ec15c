"""The run directory: immutable items, each committed once with its checksum.

An item is there if its record is there; the record is renamed into place after the item itself. So
a killed run leaves either a finished item or nothing that counts, and every question of resuming is
"is the item there?".
"""

import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue, ValidationError
from safetensors.torch import load as deserialize
from torch import Tensor

from schemas.errors import RunError
from schemas.identity import Record
from workers.files import publish, write_text
from workers.tensorfile import Entry, write_tensors

Facts = dict[str, JsonValue]


class Item(NamedTuple):
    """The content of a committed item."""

    tensors: dict[str, Tensor]
    facts: Facts


class Store:
    """Items below `root`, by key: `<root>/<key>` and its record `<root>/records/<key>.json`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the item is, or will be."""
        return self.root / key

    def record(self, key: str) -> Record | None:
        """The record of a committed item; None where it, or a file of its size, is not there.

        A damaged record is none: its item is made anew.
        """
        try:
            record = Record.model_validate_json(self._record_path(key).read_bytes())
            size = self.path(key).stat().st_size
        except (FileNotFoundError, ValidationError):
            return None
        return record if record.bytes == size and record == record.sealed() else None

    def commit(self, key: str, content: Iterable[Entry], facts: Facts | None = None) -> Record:
        """Write the item under a temporary name, fsync, rename; then the same for its record.

        An item that is there already is left as it is: items are immutable, and equal keys have
        equal content.
        """
        if (there := self.record(key)) is not None:
            return there
        path, temporary = self.path(key), self.root / "tmp" / uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        written = write_tensors(temporary, content, {"format": "pt"})
        publish(temporary, path)
        record = Record(key=key, sha256=written.sha256, bytes=written.bytes, facts=facts or {})
        record = record.sealed()
        write_text(self._record_path(key), record.model_dump_json())
        return record

    def load(self, key: str) -> Item:
        """An item, read once and checked. Raises RunError where it is absent or damaged."""
        record = self.record(key)
        path = self.path(key)
        if record is None:
            raise RunError(f"{path}: not there or cut short; start the same command again")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != record.sha256:
            self._record_path(key).unlink(missing_ok=True)
            raise RunError(
                f"{path}: its content is not what was written (SHA-256 differs); "
                "start the same command again and it will be computed anew"
            )
        return Item(deserialize(content), record.facts)

    def clear_temporaries(self) -> None:
        """Remove what killed runs were writing."""
        shutil.rmtree(self.root / "tmp", ignore_errors=True)

    def discard(self, prefix: str) -> None:
        """Forget every item below a key prefix, so that it is made anew."""
        shutil.rmtree(self.root / "records" / prefix, ignore_errors=True)
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def records(self, prefix: str) -> Iterator[Record]:
        """Records of the committed items below a key prefix, by key."""
        folder = self.root / "records" / prefix
        for path in sorted(folder.rglob("*.json")):
            key = path.relative_to(self.root / "records").as_posix().removesuffix(".json")
            if record := self.record(key):
                yield record

    def _record_path(self, key: str) -> Path:
        return self.root / "records" / f"{key}.json"
