"""Quantised tensors of a base, read as the dense ones that they stand for, in bfloat16.

FP8 has a scale for every block of a matrix, as DeepSeek and Qwen store it; MXFP4 one for every 32
numbers of a row (OCP Microscaling Formats, 2023), as gpt-oss stores its experts.
"""

from schemas.model.spec import TensorSpec

METHODS = ("fp8", "mxfp4")  # by the names that quantization_config gives them
_FP8, _FP8_SCALE = ".weight", ".weight_scale_inv"
_MXFP4, _MXFP4_SCALE = "_blocks", "_scales"
_PER_BYTE = 2  # values of four bits


def dequantised(tensors: dict[str, TensorSpec], block: tuple[int, int]) -> dict[str, TensorSpec]:
    """Return tensors with every pair of values and scales replaced by what they stand for.

    FP8 has a scale for every `block` of rows and columns. A pair whose shapes disagree stays.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.endswith((_FP8_SCALE, _MXFP4_SCALE)):
            stem = name.removesuffix(_FP8_SCALE).removesuffix(_MXFP4_SCALE)
            if {f"{stem}{_FP8}", f"{stem}{_MXFP4}"} & tensors.keys():
                continue
        dense = _fp8(name, tensor, tensors, block) or _mxfp4(name, tensor, tensors) or tensor
        found[dense.name] = dense
    return found


def _fp8(
    name: str, tensor: TensorSpec, tensors: dict[str, TensorSpec], block: tuple[int, int]
) -> TensorSpec | None:
    scale = tensors.get(f"{name.removesuffix(_FP8)}{_FP8_SCALE}")
    if scale is None or len(tensor.shape) != 2:
        return None
    blocks = tuple(-(-size // step) for size, step in zip(tensor.shape, block, strict=True))
    if scale.shape != blocks or not scale.dtype.startswith(("F", "BF")):
        return None
    return _stands_for(name, tensor.shape, (tensor, scale), block)


def _mxfp4(name: str, tensor: TensorSpec, tensors: dict[str, TensorSpec]) -> TensorSpec | None:
    scale = tensors.get(f"{name.removesuffix(_MXFP4)}{_MXFP4_SCALE}")
    if scale is None or not name.endswith(_MXFP4) or scale.shape != tensor.shape[:-1]:
        return None
    *outer, rows, groups, packed = tensor.shape
    shape = (*outer, groups * packed * _PER_BYTE, rows)  # gpt-oss keeps the transpose
    return _stands_for(name.removesuffix(_MXFP4), shape, (tensor, scale), (1, 1))


def _stands_for(
    name: str, shape: tuple[int, ...], parts: tuple[TensorSpec, TensorSpec], block: tuple[int, int]
) -> TensorSpec:
    return TensorSpec(
        name=name, file=parts[0].file, dtype="BF16", shape=shape, parts=parts, block=block
    )
