"""JSON of a checkpoint, as strict as the standard: what parsers disagree about is refused."""

import json
from collections.abc import Callable
from typing import Any, NoReturn


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def parse(content: bytes, constant: Callable[[str], Any] = _refuse) -> Any:
    """Parse a JSON value in UTF-8; `constant` may return what stands for NaN and for Infinity.

    Raises ValueError if it is not JSON, nests too deeply, repeats a key, or has such a constant.
    """
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} twice in one object")
        found[key] = value
    return found
