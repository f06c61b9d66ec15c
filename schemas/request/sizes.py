"""Sizes as people write them."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: object) -> int:
    """Return the bytes of "80GB" (10^9), "80GiB" (2^30), "1.5TB" or 1000. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    if match is None:
        raise ValueError(f"{str(text)!r} is not a size like 80GB, 80GiB or 1TB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def format_size(size: int) -> str:
    """Return bytes in the largest unit that is exact, as 6GB or 1GiB; `parse_size` reads it."""
    unit = max((u for u, factor in _UNITS.items() if size % factor == 0), key=_UNITS.__getitem__)
    return f"{size // _UNITS[unit]}{unit.upper()}B".replace("I", "i")


AS_SIZE = BeforeValidator(parse_size)
Size = Annotated[int, AS_SIZE, Field(gt=0)]
