"""Where a checkpoint is: a folder, or a prefix in an object store."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from schemas.printable import has_credentials, printable

_LOCAL = "file://"


class Url(str):
    """A place in an object store, such as s3://bucket/prefix; `/` names a place below it."""

    __slots__ = ()

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self}/{name}")

    @property
    def name(self) -> str:
        """Its last part."""
        return self.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The URL without its last part."""
        return Url(self.rpartition("/")[0])


def is_within(place: Path | Url, other: Path | Url) -> bool:
    """Whether a place is `other` or below it; never if one is a folder and one a URL."""
    if isinstance(place, Url) or isinstance(other, Url):
        return isinstance(place, Url) and f"{place}/".startswith(f"{other}/")
    return other in (place, *place.parents)


def absolute(place: Path | Url) -> Path | Url:
    """Return the full path of a folder; a URL has no other form."""
    return place.expanduser().absolute() if isinstance(place, Path) else place


def full_path(place: Path) -> Path:
    """Return the full path of a folder, or of that which a link names: no folder can be renamed to
    a link.
    """
    full = place.expanduser().absolute()
    return Path(os.path.realpath(full)) if full.is_symlink() else full


def kept_at_home() -> Path:
    """Return the folder for the small files of models in object stores, on each node its own."""
    return Path.home() / ".cache" / "svdllm"


def locate(value: object) -> Path | Url:
    """Return a URL if the text holds ://, else a path; file:// is a path.

    Raises ValueError if a URL names no bucket or carries credentials, because places are written
    to records, cards and logs.
    """
    text = str(value)
    if text.startswith(_LOCAL):
        return Path(text.removeprefix(_LOCAL))
    if "://" not in text:
        return Path(text)
    protocol, _, rest = text.partition("://")
    if not protocol or not rest.strip("/"):
        raise ValueError(f"{text!r} names no bucket or folder; write it like s3://bucket/prefix")
    if has_credentials(text):
        raise ValueError(
            f"{printable(text)!r} carries credentials; give them by the environment, as the "
            "store's client reads them, and leave them out of the URL"
        )
    return Url(text.rstrip("/"))


def _parse(value: Any) -> Path | Url:
    if not isinstance(value, (str, Path)):
        raise ValueError("neither a path nor a URL")
    if not str(value).strip():
        raise ValueError("empty; name a folder or a URL")
    return locate(value)


def _parse_path(value: Any) -> Path:
    if isinstance(place := _parse(value), Url):
        raise ValueError(f"{place} is a URL; name a path in a file system")
    return place


Location = Annotated[Path | Url, PlainValidator(_parse), PlainSerializer(str)]
LocalPath = Annotated[Path, PlainValidator(_parse_path), PlainSerializer(str)]
"""A file or folder that cannot be in an object store."""
