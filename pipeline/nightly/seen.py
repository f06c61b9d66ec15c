"""What is known of checkpoints from earlier nights, so that nothing is read twice."""

import json

from pipeline.nightly.sources import Checkpoint, Source
from schemas.errors import CheckpointError
from schemas.location import Location
from workers.storage.places import read_bytes, write

_FILE = "seen.json"


class Seen:
    """The contents of a source, by the stamps of their files; losing this file does no harm."""

    def __init__(self, prefix: Location, source: Source) -> None:
        self._place, self._source = prefix / _FILE, source
        self._known: dict[str, list[str]] = {}
        try:
            found = json.loads(read_bytes(self._place))
        except (FileNotFoundError, ValueError, RecursionError):
            return
        if isinstance(found, dict):
            self._known = {name: pair for name, pair in found.items() if _is_pair(pair)}

    def known(self, checkpoint: Checkpoint) -> str | None:
        """Return its content, if it was identified before and its files have not changed since."""
        stamp, content = self._known.get(checkpoint.name, ("", ""))
        return content if stamp and self._source.stamp(checkpoint) == stamp else None

    def content(self, checkpoint: Checkpoint) -> str:
        """Return its content.

        Raises CheckpointError if it is incomplete, is being written or cannot be read.
        """
        if found := self.known(checkpoint):
            return found
        stamp = self._source.stamp(checkpoint)
        try:
            content = self._source.content(checkpoint)
        except OSError as error:
            place = error.filename or checkpoint.model
            raise CheckpointError(f"{place}: {error.strerror or error}") from error
        if not stamp or self._source.stamp(checkpoint) != stamp:
            raise CheckpointError(f"{checkpoint.model}: it is being written")
        self._known[checkpoint.name] = [stamp, content]
        self._save()
        return content

    def changed(self, checkpoint: Checkpoint, content: str) -> bool:
        """Return whether its content differs from `content`; False if the checkpoint has gone."""
        try:
            gone = self._source.stamp(checkpoint) is None
            return not gone and self.content(checkpoint) != content
        except CheckpointError:
            return True

    def forget(self, there: list[Checkpoint]) -> None:
        """Drop the entries of checkpoints that are gone."""
        names = {checkpoint.name for checkpoint in there}
        if gone := self._known.keys() - names:
            for name in gone:
                del self._known[name]
            self._save()

    def _save(self) -> None:
        write(self._place, json.dumps(self._known, indent=1).encode())


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
