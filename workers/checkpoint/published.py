"""A published checkpoint: its mark of success, its manifest and its description."""

import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from schemas.base import Schema
from schemas.errors import CheckpointError, ConfigError
from schemas.location import Location
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression, Manifest, OutputResult
from schemas.result.quantization import Quantization
from workers.checkpoint.names import (
    CLAIM,
    COMPRESSION,
    EVALUATION,
    MANIFEST,
    QUANTIZATION,
    SUCCESS,
)
from workers.storage.models import read_model
from workers.storage.places import exists, folders_in, names_in, read_bytes

S = TypeVar("S", bound=Schema)
_OF_A_RATIO = re.compile(r"ratio-\d\.\d\d")


def is_published(place: Location, identity: str) -> bool:
    """Whether a checkpoint of this identity is published.

    Raises ConfigError if the place holds a checkpoint of another identity, CheckpointError if its
    manifest is damaged.
    """
    if not exists(place / SUCCESS):
        return False
    if read_manifest(place).output != identity:
        raise ConfigError(
            f"output {place} holds a checkpoint of another model, text, method, ratio or setting; "
            "name another folder, or remove it"
        )
    return True


def read_output(place: Location, ratio: float) -> OutputResult:
    """Return a finished checkpoint at a ratio. Raises CheckpointError if there is none."""
    if not exists(place / SUCCESS):
        raise CheckpointError(f"{place}: no finished checkpoint")
    return OutputResult(
        ratio=ratio,
        path=place,
        compression=read_compression(place),
        checks=(),
        evaluation=read_model(place / EVALUATION, EvaluationReport),
    )


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
        several = ratios_in(place)
        more = f", or its ratios, too, to add one to {several}" if several else ""
        raise ConfigError(
            f"output {place} exists and is no finished checkpoint of this program; name another "
            f"folder{more}"
        )


def ratios_in(place: Location) -> str:
    """Name the checkpoints of several ratios that a folder holds, if it does."""
    return ", ".join(name for name in folders_in(place) if _OF_A_RATIO.fullmatch(name))


def read_manifest(folder: Location) -> Manifest:
    """Return the manifest of a compressed checkpoint. Raises CheckpointError if there is none."""
    return _read(folder, MANIFEST, Manifest)


def read_compression(folder: Location) -> Compression:
    """Return compression.json of a checkpoint. Raises CheckpointError if there is none."""
    return _read(folder, COMPRESSION, Compression)


def read_quantization(folder: Location) -> Quantization:
    """Return quantization.json of a checkpoint. Raises CheckpointError if there is none."""
    return _read(folder, QUANTIZATION, Quantization)


def _read(folder: Location, name: str, schema: type[S]) -> S:
    path = folder / name
    try:
        return schema.model_validate_json(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        several = ratios_in(folder)
        instead = f"; name one of {several} below it" if several else ""
        raise CheckpointError(
            f"{path}: not found; not a checkpoint of this program{instead}"
        ) from None
    except ValidationError as error:
        what = schema.__name__.lower()
        raise CheckpointError(f"{path}: not a {what} of this program ({error})") from None
