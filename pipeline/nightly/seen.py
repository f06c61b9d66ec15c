"""What is known of checkpoints from the nights before, so that nothing is read twice."""

import json
from pathlib import Path

from pipeline.nightly.sources import Checkpoint, Source
from schemas.errors import CheckpointError
from schemas.location import Url
from workers.storage.places import read_bytes, write

_FILE = "seen.json"


class Seen:
    """The contents of a source, by the stamps of their files; it may be lost without harm."""

    def __init__(self, prefix: Path | Url, source: Source) -> None:
        self._place, self._source = prefix / _FILE, source
        self._known: dict[str, list[str]] = {}
        try:
            found = json.loads(read_bytes(self._place))
        except (FileNotFoundError, ValueError, RecursionError):
            return
        if isinstance(found, dict):
            self._known = {name: pair for name, pair in found.items() if _is_pair(pair)}

    def known(self, checkpoint: Checkpoint) -> str | None:
        """Its content, if it was identified before and has not been touched since."""
        stamp, content = self._known.get(checkpoint.name, ("", ""))
        return content if stamp and self._source.stamp(checkpoint) == stamp else None

    def content(self, checkpoint: Checkpoint) -> str:
        """Its content. Raises CheckpointError if it is not complete, or being written."""
        if found := self.known(checkpoint):
            return found
        stamp = self._source.stamp(checkpoint)
        content = self._source.content(checkpoint)
        if not stamp or self._source.stamp(checkpoint) != stamp:
            raise CheckpointError(f"{checkpoint.model}: it is being written")
        self._known[checkpoint.name] = [stamp, content]
        self._save()
        return content

    def changed(self, checkpoint: Checkpoint, content: str) -> bool:
        """Whether it is another one than it was; one that has gone since is not."""
        try:
            gone = self._source.stamp(checkpoint) is None
            return not gone and self.content(checkpoint) != content
        except CheckpointError:
            return True

    def forget(self, there: list[Checkpoint]) -> None:
        """Keep what is said of checkpoints that are there."""
        names = {checkpoint.name for checkpoint in there}
        if gone := self._known.keys() - names:
            for name in gone:
                del self._known[name]
            self._save()

    def _save(self) -> None:
        write(self._place, json.dumps(self._known, indent=1).encode())


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
