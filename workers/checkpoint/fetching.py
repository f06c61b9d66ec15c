"""The local folder of a checkpoint: its own, the hub's snapshot, or one for its small files."""

import shutil
import uuid
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download

from schemas.errors import CheckpointError
from schemas.location import Url, locate
from schemas.run.identity import fingerprint
from workers.checkpoint.config_file import HUB_ERRORS, not_given, require_hub_id
from workers.checkpoint.folder import WANTED, is_wanted
from workers.storage.files import publish
from workers.storage.places import at_once, download, identity_of, names_in, url_of

_UNWANTED = ("consolidated*", "*/*.safetensors")  # second copies of weights, in other forms


def resolve(model: str, revision: str | None, fetched: Path | None = None) -> Path:
    """Return the local folder of a checkpoint: `model` itself, or the hub's snapshot of it.

    For a URL it is a folder below `fetched`, with all files except the weights.
    """
    if place := url_of(model):
        if fetched is None:
            raise CheckpointError(f"model {model!r}: only a folder or a hub id is read here")
        return _fetch_small(place, fetched)
    folder = Path(locate(model)).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{folder}: a folder has no revision {revision}; leave that out, or name a hub id"
            )
        return folder.resolve()
    require_hub_id(model)
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(WANTED),
                ignore_patterns=list(_UNWANTED),  # where * stands for folders, too
            )
        )
    except HUB_ERRORS as error:
        raise not_given(model, error) from error


def _fetch_small(place: Url, fetched: Path) -> Path:
    """Return a folder with a checkpoint's small files, named by the identity of all its files.

    It appears complete or not at all; if another process was faster, its folder is kept.
    """
    names = filter(is_wanted, names_in(place))
    wanted = [name for name in names if not any(fnmatch(name, one) for one in _UNWANTED)]
    if not wanted:
        raise CheckpointError(f"model {place}: no file there; check the URL and the credentials")
    versions = at_once(lambda name: identity_of(place / name), wanted)
    folder = fetched / fingerprint([place, *zip(wanted, versions, strict=True)])
    if folder.is_dir():
        return folder
    small = [name for name in wanted if not name.endswith(".safetensors")]
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        download({name: place / name for name in small}, temporary)
        publish(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
