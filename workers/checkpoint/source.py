"""A checkpoint, described so that every node reads it alike."""

from pathlib import Path
from typing import NamedTuple

from schemas.model.spec import DecoderSpec


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
