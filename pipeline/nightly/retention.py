"""What a night removes: only what this program made, and the catalogue says it made there."""

import contextlib
import json
from pathlib import Path

from schemas.errors import CheckpointError, ConfigError
from schemas.location import Location, is_within
from schemas.request.config import ROUNDS
from schemas.request.nightly import CatalogRow
from workers.checkpoint.names import MANIFEST, SUCCESS
from workers.checkpoint.published import read_manifest
from workers.storage.keys import RUN_RECORD
from workers.storage.places import (
    files_below,
    folders_in,
    names_in,
    read_bytes,
    remove,
    remove_below,
)


def place_of(prefix: Location, row: CatalogRow) -> Location:
    """Return the place of an output. Raises ConfigError if its row leads out of the prefix."""
    place = prefix / (row.path or "")
    inside = is_within(place.parent.parent, prefix / "checkpoints")
    if not inside or ".." in str(row.path).split("/"):
        raise ConfigError(f"catalogue row {row.number}: path {row.path!r} is no output")
    return place


def remove_output(place: Location, identity: str | None) -> bool:
    """Remove the output of this identity; False if something else is there, which stays.

    The mark of success goes first and the manifest last: after a killed removal the output is no
    longer a checkpoint, and the removal can be resumed.
    """
    names = files_below(place)
    if names and not _is_output(place, identity):
        return False
    remove(place / SUCCESS)
    for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
        remove(place / name)
    remove_below(place)
    if isinstance(place, Path):
        with contextlib.suppress(OSError):  # other ratios may be beside it
            place.parent.rmdir()
    return True


def remove_run(place: Location, output: Location) -> None:
    """Remove the run directory of an output below `output`; keep what is not one.

    Its record goes last, or those of its rounds, so that a killed removal can be resumed.
    """
    rounds = [place / ROUNDS / name / "run" for name in folders_in(place / ROUNDS)]
    outputs = [made for run in (place, *rounds) for made in _outputs(run)]
    if any(f"{made}/".startswith((f"{output}/", f"{place}/")) for made in outputs):
        _clear(place)
        for run in rounds:
            remove_below(run.parent / "checkpoint")
            _clear(run)
            remove_below(run.parent)
        remove_below(place)


def _clear(run: Location) -> None:
    """Remove all of a run directory but its record, and the rounds in it."""
    for name in {*folders_in(run)} - {ROUNDS}:
        remove_below(run / name)
    for name in {*names_in(run)} - {RUN_RECORD}:
        remove(run / name)


def _outputs(run: Location) -> list[str]:
    """Return the places of the outputs of a run, by its record; none if that cannot be read."""
    try:
        return list(json.loads(read_bytes(run / RUN_RECORD))["outputs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _is_output(place: Location, identity: str | None) -> bool:
    try:
        return identity is not None and read_manifest(place).output == identity
    except (CheckpointError, FileNotFoundError):
        return False
