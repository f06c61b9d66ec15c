"""Headers of safetensors files: every tensor's name, dtype, shape and place, without its content.

A file is the header's length (8 bytes, little-endian), the header (JSON), then all content.
"""

import math
from typing import Any

from schemas.errors import CheckpointError
from schemas.location import Location
from schemas.model.dtypes import FORMATS, ITEM_BYTES
from schemas.model.spec import TensorSpec
from workers.checkpoint.folder import unreadable
from workers.checkpoint.strict_json import parse
from workers.storage.places import read_into, size_of

QUANTISED_ADVICE = "a quantised base is not read: compress the original, then quantise the result"
_LENGTH = 8
_LARGEST = 100 * 10**6  # safetensors' own bound


def read_header(place: Location) -> list[TensorSpec]:
    """Return the tensors of a file, in the order of its header, by two small reads.

    Raises CheckpointError if the file is absent, cut short, too long or not of this format: its
    tensors must follow each other without a gap or an overlap. Nothing is allocated for a header
    that the file cannot hold.
    """
    try:
        size = size_of(place)
        length = int.from_bytes(_read(place, 0, min(_LENGTH, size)), "little")
        content = _LENGTH + length
        if size < _LENGTH or content > size:
            raise _damaged(place, f"{size} bytes, its header would end at {content}")
        if length > _LARGEST:
            raise _damaged(place, f"a header of {length} bytes, {_LARGEST} are the most")
        header = _read(place, _LENGTH, length)
    except FileNotFoundError:
        raise CheckpointError(
            f"{place}: not found, though the index names it; fetch the missing file"
        ) from None
    except OSError as error:
        raise unreadable(place, error) from error
    try:
        table = parse(header)
        metadata = table.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not of strings")
        specs = [_spec(place, name, entry, content) for name, entry in table.items()]
        _require_gapless(specs, content, size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(place, f"{type(error).__name__}: {error}") from error
    return specs


def _read(place: Location, start: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_into(place, start, memoryview(buffer))
    return bytes(buffer)


def _spec(place: Location, name: str, entry: dict[str, Any], content: int) -> TensorSpec:
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        other = f"only {', '.join(FORMATS)} are read: convert it to one of these"
        advice = QUANTISED_ADVICE if str(dtype).startswith(("F8", "F6", "F4")) else other
        raise CheckpointError(f"{place}: {name} is {dtype}; {advice}")
    start, stop = entry["data_offsets"]
    if not all(type(value) is int and value >= 0 for value in (start, stop, *shape)):
        raise ValueError(f"{name}: shape {shape} or place {start} to {stop} is no whole number")
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name}: bytes {start} to {stop} are not {dtype} {shape}")
    return TensorSpec(
        name=name, file=place.name, dtype=dtype, shape=tuple(shape), offset=content + start
    )


def _require_gapless(specs: list[TensorSpec], content: int, size: int) -> None:
    end = content
    for spec in sorted(specs, key=lambda spec: (spec.offset or 0, spec.nbytes)):
        if spec.offset != end:
            raise ValueError(
                f"{spec.name} begins at byte {spec.offset}, the one before ends at {end}"
            )
        end += spec.nbytes
    if end != size:
        raise ValueError(f"{size} bytes, its tensors end at {end}")


def _damaged(place: Location, why: str) -> CheckpointError:
    return CheckpointError(
        f"{place}: not a complete safetensors file ({why}); copy or write it anew"
    )
