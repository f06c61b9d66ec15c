"""The catalogue: every attempt and its outcome, as small Parquet files that are never changed.

An event is one file, created under the next number by one exclusive write: it appears whole or
not at all, on any storage, and no two writers share a number. Their numbers are their order;
the times in them are for people. `pyarrow.parquet.read_table(PREFIX/catalog)` reads them as one.
"""

import io
import re
from datetime import UTC, datetime
from typing import get_args

import pyarrow  # type: ignore[import-untyped]
from pyarrow import parquet
from pydantic import ValidationError

from schemas.errors import ConfigError
from schemas.location import Location
from schemas.request.nightly import CatalogRow
from workers.storage.places import at_once, create, names_in, read_bytes, remove

FOLDER = "catalog"
_NAME = re.compile(r"(\d{6,})\.parquet")
# Raised for bytes that are not a table; Thrift and Snappy raise OSError.
_DAMAGES = (pyarrow.ArrowException, OSError, UnicodeDecodeError, ValidationError)
_TYPES = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}


def read(prefix: Location) -> list[CatalogRow]:
    """All rows, in their order; none if there is no catalogue."""
    place = prefix / FOLDER
    names = [f"{number:06}.parquet" for number in _numbers(place)]
    return [row for rows in at_once(lambda name: _rows(place / name), names) for row in rows]


def append(prefix: Location, rows: list[CatalogRow]) -> list[CatalogRow]:
    """Write one event, of one or several rows, under the next number; return the rows written."""
    place = prefix / FOLDER
    now = datetime.now(UTC).isoformat(timespec="seconds")
    while True:
        number = max(_numbers(place), default=0) + 1
        numbered = [row.model_copy(update={"number": number, "at": now}) for row in rows]
        if create(place / f"{number:06}.parquet", _bytes(numbered)):
            return numbered


def sweep(prefix: Location) -> None:
    """Remove the leftovers of killed writes, so that other readers find only tables."""
    place = prefix / FOLDER
    for name in names_in(place):
        if name.endswith(".tmp"):
            remove(place / name)


def _numbers(place: Location) -> list[int]:
    return sorted(int(found[1]) for found in map(_NAME.fullmatch, names_in(place)) if found)


def _bytes(rows: list[CatalogRow]) -> bytes:
    table = pyarrow.Table.from_pylist([row.model_dump() for row in rows], schema=_schema())
    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()


def _rows(place: Location) -> list[CatalogRow]:
    content = read_bytes(place)
    try:
        found = parquet.read_table(io.BytesIO(content)).to_pylist()
        return [CatalogRow.model_validate(row) for row in found]
    except _DAMAGES as error:
        raise ConfigError(
            f"{place}: no row of a catalogue of this version ({error}); put it back from a backup, "
            "or remove it: then what it tells did not happen"
        ) from error


def _schema() -> pyarrow.Schema:
    """Return a column for every field, typed by its annotation; a choice of words is text."""
    columns = []
    for name, field in CatalogRow.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        kind = next((kind for kind in _TYPES if kind in kinds), str)
        columns.append((name, _TYPES[kind]))
    return pyarrow.schema(columns)
