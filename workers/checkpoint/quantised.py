"""Quantised tensors of a base, read as the dense ones that they stand for, in bfloat16.

FP8 has a scale for every block of a matrix, as DeepSeek and Qwen store it; MXFP4 one for every 32
numbers of a row (OCP Microscaling Formats, 2023), as gpt-oss stores its experts.
"""

from schemas.model.spec import TensorSpec

METHODS = ("fp8", "mxfp4")  # by the names that quantization_config gives them
_FP8, _FP8_SCALE = ".weight", ".weight_scale_inv"
_MXFP4, _MXFP4_SCALE = "_blocks", "_scales"
_PER_BYTE = 2  # values of four bits


def dequantised(tensors: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return tensors with every pair of values and scales replaced by what they stand for."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith((_FP8_SCALE, _MXFP4_SCALE)):
            stem = name.removesuffix(_FP8_SCALE).removesuffix(_MXFP4_SCALE)
            if {f"{stem}{_FP8}", f"{stem}{_MXFP4}"} & tensors.keys():
                continue
        if scale := tensors.get(f"{name.removesuffix(_FP8)}{_FP8_SCALE}"):
            found[name] = _stands_for(name, tensor.shape, tensor, scale)
        elif name.endswith(_MXFP4) and (
            scale := tensors.get(f"{name.removesuffix(_MXFP4)}{_MXFP4_SCALE}")
        ):
            dense = name.removesuffix(_MXFP4)
            *outer, rows, groups, packed = tensor.shape
            shape = (*outer, groups * packed * _PER_BYTE, rows)  # gpt-oss keeps the transpose
            found[dense] = _stands_for(dense, shape, tensor, scale)
        else:
            found[name] = tensor
    return found


def _stands_for(
    name: str, shape: tuple[int, ...], quantised: TensorSpec, scale: TensorSpec
) -> TensorSpec:
    return TensorSpec(
        name=name, file=quantised.file, dtype="BF16", shape=shape, parts=(quantised, scale)
    )
