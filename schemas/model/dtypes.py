"""Number formats: safetensors' name of each, torch's name, and its bytes."""

from typing import NamedTuple


class Format(NamedTuple):
    """`torch` is its name as an attribute of torch, `bytes` the size of one number."""

    torch: str
    bytes: int


FORMATS = {
    "F64": Format("float64", 8),
    "F32": Format("float32", 4),
    "F16": Format("float16", 2),
    "BF16": Format("bfloat16", 2),
    "I64": Format("int64", 8),
    "I32": Format("int32", 4),
    "I16": Format("int16", 2),
    "I8": Format("int8", 1),
    "U8": Format("uint8", 1),
    "BOOL": Format("bool", 1),
}
QUANTISED = {
    "F8_E4M3": Format("float8_e4m3fn", 1),
    "F8_E8M0": Format("float8_e8m0fnu", 1),
}
"""Formats of quantised values and of scales, which have no meaning by themselves."""
ITEM_BYTES = {name: row.bytes for name, row in (FORMATS | QUANTISED).items()}
"""Bytes of a number, by safetensors' name of its format."""
STORED = {row.torch: name for name, row in FORMATS.items() if "F" in name}
"""Safetensors' name of a floating-point format, by torch's name."""


def computed_in(stored: str) -> str:
    """Return torch's name of the format in which a GPU computes weights stored as `stored`.

    Weights stored in float16 are computed in bfloat16: gradients leave the range of float16. Those
    in float64 are computed in float32.
    """
    return FORMATS[{"F16": "BF16", "F64": "F32"}.get(stored, stored)].torch
