"""Sizes, counts and shares as people write them."""

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_size(text: object) -> int:
    """Return the bytes of "80GB" (10^9), "80GiB" (2^30), "1.5TB" or 1000. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    if match is None:
        raise ValueError(f"{str(text)!r} is not a size like 80GB, 80GiB or 1TB")
    return round(float(match[1]) * _UNITS[match[2] or ""])


def format_size(size: int) -> str:
    """Return bytes in the largest unit that is exact, as 6GB or 1GiB; `parse_size` reads it."""
    unit = max((u for u, factor in _UNITS.items() if size % factor == 0), key=_UNITS.__getitem__)
    return f"{size // _UNITS[unit]}{unit.upper()}B".replace("I", "i")


def parse_count(text: object) -> int:
    """Return the number of "5B" (10^9), "100M", "7.5k" or 1000. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kmbt])?", str(text).strip().lower())
    if match is None:
        raise ValueError(f"{str(text)!r} is not a number like 5B, 100M or 1000000")
    return round(float(match[1]) * _COUNTS[match[2] or ""])


def _if_any(parse: Callable[[object], int]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else parse(value))


def _share(value: object) -> object:
    """Return 0.05 of "5%"; another number is a share itself. Raises ValueError above 1."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip().removesuffix("%")) / 100
    try:
        above = float(str(value)) > 1
    except ValueError:
        return value  # which pydantic refuses, or None
    if above:  # 5 for 5%
        raise ValueError("that allows more than twice the base's; write it in %, as 5%")
    return value


AS_SIZE, AS_COUNT = _if_any(parse_size), _if_any(parse_count)
AS_SHARE = BeforeValidator(_share)
Size = Annotated[int, AS_SIZE, Field(gt=0)]
