"""A checkpoint, described so that every node reads it alike."""

from pathlib import Path
from typing import NamedTuple

from schemas.location import Url
from schemas.model.spec import DecoderSpec
from workers.storage.places import place_of


class Source(NamedTuple):
    """A folder, a hub id with its commit, or a URL, and its contents.

    `dtype` is safetensors' name of the compute dtype. `fetched` is the folder for the small files
    of a checkpoint in an object store.
    """

    model: str
    revision: str | None
    spec: DecoderSpec
    dtype: str
    fetched: Path | None = None


def on_every_node(name: str, folder: Path) -> tuple[str, str | None]:
    """Return the folder, or the hub id and the commit that it stands for now, by which any node
    finds a model; a URL has been copied to the folder.
    """
    place = place_of(name)
    local = isinstance(place, Url) or place.expanduser().is_dir()
    return (str(folder.absolute()), None) if local else (name, folder.name)
