"""The schemes of compressed-tensors, fitted to the columns of each linear layer."""

from compressed_tensors.compressors.format import (  # type: ignore[import-untyped]
    infer_module_format,
)
from compressed_tensors.quantization import (  # type: ignore[import-untyped]
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    preset_name_to_scheme,
)
from torch import nn

from schemas.request.quantization import GROUPED, Scheme

# FP8 with a scale a row and a scale a token, which need no calibration.
_PRESETS = {"FP8": "FP8_DYNAMIC"}
_GROUPS = (128, 64, 32)  # those that serving engines have kernels for


def scheme_for(name: Scheme, columns: int, group_size: int | None = None) -> QuantizationScheme:
    """Return the scheme of a linear layer of so many columns; its targets are empty.

    Where a scheme has groups, one must divide the columns: by default the largest of 128, 64 and 32
    that does. If none does, each row has one scale. Raises ValueError if the scheme has groups of
    one size only, and that does not divide the columns.
    """
    scheme = preset_name_to_scheme(_PRESETS.get(name, name), targets=[])
    weights: QuantizationArgs = scheme.weights
    if name in GROUPED:
        sizes = (group_size,) if group_size else _GROUPS
        group = next((size for size in sizes if columns % size == 0), None)
        changed = {"group_size": group}
        if group is None:
            changed["strategy"] = QuantizationStrategy.CHANNEL
        scheme.weights = QuantizationArgs(**(weights.model_dump() | changed))
    elif weights.group_size and columns % weights.group_size:
        raise ValueError(f"{columns} columns are no multiple of {weights.group_size}")
    scheme.format = infer_module_format(nn.Linear, scheme)
    return scheme
