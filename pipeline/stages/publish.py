"""The last step: a verified folder becomes the checkpoint.

On a file system in one rename, onto nothing or an empty folder. In an object store file by file,
below a claim that runs of other identities respect. There every file is created where it is not
yet, none is ever replaced, and the manifest is of what is there: so however many drivers of one
identity publish at once, or late, the result is one and whole. `_SUCCESS` comes last; before it
nothing counts.
"""

import errno
import hashlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from schemas.errors import ConfigError, RunError
from schemas.location import Url
from schemas.result.manifest import FileEntry, Manifest
from workers.checkpoint.published import CLAIM, SUCCESS, finished, require_free
from workers.storage.files import copy_folder, publish, write_text
from workers.storage.places import create, read_bytes, remove, transfer

_MANIFEST = "manifest.json"


def publish_output(staging: Path, folder: Path, identity: str) -> bool:
    """Mark `staging` as a success and rename it to `folder`, where that is empty or absent.

    Where another driver was faster, its checkpoint stays, and this is False. Raises ConfigError if
    that is of another identity, or where something else is there by now.
    """
    write_text(staging / SUCCESS, "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _rename(staging, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if finished(folder, identity) is None:
            require_free(folder)
            raise
        return False
    return True


def _rename(staging: Path, folder: Path) -> None:
    """In one step, also from another file system. Raises RunError where that takes no more."""
    try:
        publish(staging, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            copy_folder(staging, beside)
            publish(beside, folder)
        except OSError as failed:
            if failed.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise RunError(
                f"output {folder}: {failed.strerror}; the checkpoint needs "
                f"{sum(path.stat().st_size for path in staging.iterdir()):,} bytes there; make "
                "room, then start the same command again"
            ) from failed
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def publish_to_store(
    staging: Path, url: Url, identity: str, weights: set[str], send: Callable[[set[str]], None]
) -> None:
    """Copy `staging` below `url`, where files are not there; `send` does so for `weights`.

    What a run of the same identity left here, stopped or at work, is gone on with. Raises
    ConfigError where another run has claimed the place or has published there.
    """
    if not create(url / CLAIM, identity.encode()):
        owner = read_bytes(url / CLAIM).decode()
        if owner != identity:
            raise ConfigError(
                f"output {url}: another run ({owner}) is publishing there, or was stopped while it "
                "did; continue that one, or remove what is there, or name another place"
            )
    if finished(url, identity) is None:
        send(weights)
        small = {path.name: path for path in staging.iterdir()}.keys() - weights - {_MANIFEST}
        for name in sorted(small):
            transfer(staging / name, url / name)
        manifest = Manifest.model_validate_json((staging / _MANIFEST).read_bytes())
        files = manifest.files | {name: _entry(url / name) for name in small}
        text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2) + "\n"
        create(url / _MANIFEST, text.encode())
        if not create(url / SUCCESS, b""):
            finished(url, identity)  # by another driver of this very run, or it raises
    remove(url / CLAIM)


def _entry(place: Url) -> FileEntry:
    content = read_bytes(place)
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
