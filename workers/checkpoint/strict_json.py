"""JSON of a checkpoint, as strict as the standard: what parsers disagree about is refused."""

import json
from typing import Any, NoReturn


def parse(content: bytes) -> Any:
    """Parse a JSON value in UTF-8.

    Raises ValueError if it is not JSON, nests too deeply, repeats a key, or has NaN or Infinity.
    """
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
