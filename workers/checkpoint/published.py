"""A published checkpoint: its mark of success, its manifest and its description."""

from pathlib import Path

from pydantic import ValidationError

from schemas.errors import CheckpointError, ConfigError
from schemas.location import Location
from schemas.result.manifest import Compression, Manifest
from workers.checkpoint.names import CLAIM, COMPRESSION, MANIFEST, SUCCESS
from workers.storage.places import exists, names_in, read_bytes


def finished(place: Location, identity: str) -> Compression | None:
    """Return the description of a published checkpoint of this identity; None if there is none.

    Raises ConfigError if the place holds a checkpoint of another identity.
    """
    if not exists(place / SUCCESS):
        return None
    manifest = read_manifest(place)
    if manifest.output != identity:
        raise ConfigError(
            f"output {place} holds a checkpoint of another model, text, method or ratio; name "
            "another folder, or remove it"
        )
    return Compression.model_validate_json(read_bytes(place / COMPRESSION))


def require_free(place: Location) -> None:
    """Raises ConfigError if the place holds anything but a checkpoint of this program."""
    if exists(place / SUCCESS):
        return
    if isinstance(place, Path):
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    else:
        names = names_in(place)
        taken = bool(names) and CLAIM not in names
    if taken:
        raise ConfigError(
            f"output {place} exists and is no finished checkpoint of this program; name another "
            "folder, or empty it"
        )


def read_manifest(folder: Location) -> Manifest:
    """Return the manifest of a compressed checkpoint. Raises CheckpointError if there is none."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; not a checkpoint of this program") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a manifest of this program ({error})") from None
