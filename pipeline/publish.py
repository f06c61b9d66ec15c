"""The last step: a verified folder becomes the checkpoint, in one rename."""

import errno
import shutil
import uuid
from pathlib import Path

from schemas.errors import ConfigError
from schemas.manifest import Compression
from workers.store import publish, write_text
from workers.verify import read_manifest

SUCCESS = "_SUCCESS"


def finished(folder: Path, identity: str) -> Compression | None:
    """The description of a published checkpoint of this identity; None where nothing is there.

    Raises ConfigError where the folder holds a checkpoint of another identity.
    """
    if not (folder / SUCCESS).is_file():
        return None
    manifest = read_manifest(folder)
    if manifest.output != identity:
        raise ConfigError(
            f"output {folder} holds a checkpoint of another model, text, method or ratio; name "
            "another folder, or remove it"
        )
    return Compression.model_validate_json((folder / "compression.json").read_bytes())


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
