"""Headers of safetensors files: every tensor's name, dtype, shape and place, without its content.

A file is the header's length (8 bytes, little-endian), the header (JSON), then all content.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.errors import CheckpointError
from schemas.location import Url
from schemas.model import ITEM_BYTES, TensorSpec
from workers.objects import read_into, size_of

_LENGTH = 8
_LARGEST = 100 * 10**6  # safetensors' own bound


def read_header(place: Path | Url) -> list[TensorSpec]:
    """The tensors of a file, in the order of its header, by two small reads.

    Raises CheckpointError where the file is absent, cut short, too long or not of this format.
    """
    try:
        size = size_of(place)
    except FileNotFoundError:
        raise CheckpointError(f"{place}: not found, though the index names it") from None
    length = int.from_bytes(_read(place, 0, min(_LENGTH, size)), "little")
    content = _LENGTH + length
    if size < _LENGTH or content > size:
        raise _damaged(place, f"{size} bytes, its header would end at {content}")
    if length > _LARGEST:
        raise _damaged(place, f"a header of {length} bytes, {_LARGEST} are the most")
    try:
        table = json.loads(_read(place, _LENGTH, length))
        table.pop("__metadata__", None)
        specs = [_spec(place, name, entry, content) for name, entry in table.items()]
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise _damaged(place, f"{type(error).__name__}: {error}") from error
    end = content + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if end != size:
        raise _damaged(place, f"{size} bytes, its tensors end at {end}")
    return specs


def _read(place: Path | Url, start: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_into(place, start, memoryview(buffer))
    return bytes(buffer)


def _spec(place: Path | Url, name: str, entry: dict[str, Any], content: int) -> TensorSpec:
    if entry["dtype"] not in ITEM_BYTES:
        raise CheckpointError(
            f"{place}: {name} is {entry['dtype']}; "
            f"only {', '.join(ITEM_BYTES)} are read: convert it to one of these"
        )
    start, stop = entry["data_offsets"]
    spec = TensorSpec(
        name=name,
        file=place.name,
        dtype=entry["dtype"],
        shape=entry["shape"],
        offset=content + start,
    )
    if start < 0 or min(spec.shape, default=0) < 0 or stop - start != spec.nbytes:
        raise ValueError(f"{name}: bytes {start} to {stop} are not {spec.dtype} {spec.shape}")
    return spec


def _damaged(place: Path | Url, why: str) -> CheckpointError:
    return CheckpointError(
        f"{place}: not a complete safetensors file ({why}); copy or write it anew"
    )
