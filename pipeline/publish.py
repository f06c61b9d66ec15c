"""The last step: a verified folder becomes the checkpoint.

On a file system in one rename. In an object store file by file, below a claim that other runs
respect; `_SUCCESS` comes last, by one conditional write, and before it nothing counts.
"""

import errno
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from schemas.errors import ConfigError
from schemas.location import Url
from schemas.manifest import Compression
from workers.files import publish, write_text
from workers.objects import create, exists, names_in, read_bytes, remove, upload
from workers.verify import read_manifest

SUCCESS = "_SUCCESS"
_CLAIM = "_PUBLISHING"  # holds the identity of the output that is on its way
_MANIFEST = "manifest.json"


def finished(place: Path | Url, identity: str) -> Compression | None:
    """The description of a published checkpoint of this identity; None where nothing is there.

    Raises ConfigError where the place holds a checkpoint of another identity.
    """
    if not exists(place / SUCCESS):
        return None
    manifest = read_manifest(place)
    if manifest.output != identity:
        raise ConfigError(
            f"output {place} holds a checkpoint of another model, text, method or ratio; name "
            "another folder, or remove it"
        )
    return Compression.model_validate_json(read_bytes(place / "compression.json"))


def require_free(place: Path | Url) -> None:
    """Raises ConfigError where something else than a checkpoint of this program is there."""
    if exists(place / SUCCESS):
        return
    if isinstance(place, Path):
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    else:
        names = names_in(place)
        taken = bool(names) and _CLAIM not in names
    if taken:
        raise ConfigError(
            f"output {place} exists and is no finished checkpoint of this program; name another "
            "folder, or empty it"
        )


def publish_output(staging: Path, folder: Path) -> None:
    """Mark `staging` as a success and rename it to `folder`, which is empty or absent."""
    write_text(staging / SUCCESS, "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish(staging, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        shutil.copytree(staging, beside)
        publish(beside, folder)
        shutil.rmtree(staging)


def publish_to_store(
    staging: Path, url: Url, identity: str, weights: set[str], send: Callable[[set[str]], None]
) -> None:
    """Copy `staging` below `url`; `send` copies the files named `weights`.

    A run of the same identity that was stopped here begins again: its files are the same ones.
    Raises ConfigError where another run has claimed the place or has published there.
    """
    if not create(url / _CLAIM, identity.encode()):
        owner = read_bytes(url / _CLAIM).decode()
        if owner != identity:
            raise ConfigError(
                f"output {url}: another run ({owner}) is publishing there, or was stopped while it "
                "did; continue that one, or remove what is there, or name another place"
            )
    if finished(url, identity) is None:
        send(weights)
        for path in sorted(staging.iterdir()):
            if path.name not in weights | {_MANIFEST}:
                upload(path, url / path.name)
        upload(staging / _MANIFEST, url / _MANIFEST)
        if not create(url / SUCCESS, b""):
            finished(url, identity)  # by another driver of this very run, or it raises
    remove(url / _CLAIM)
