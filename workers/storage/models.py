"""Small JSON files that a schema describes."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from schemas.location import Location
from workers.storage.places import read_bytes

M = TypeVar("M", bound=BaseModel)


def read_model(place: Location, schema: type[M]) -> M | None:
    """Return what a file holds; None if there is none, or none that this version can read."""
    try:
        return schema.model_validate_json(read_bytes(place))
    except (FileNotFoundError, ValidationError):
        return None
