"""The size of weight files in a scheme, known from shapes. Imports compressed-tensors if asked."""

from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor

from schemas.model.spec import ModelSpec
from schemas.request.quantization import Scheme
from schemas.result.output import OutputFile, OutputTensor
from workers.output import file_bytes
from workers.quantisation import require_installed
from workers.storage.tensorfile import DTYPES, NAMES


def base_bytes(spec: ModelSpec, scheme: Scheme) -> int:
    """Return the bytes of the weight file that `quantize` makes of a base with one, if its matrices
    are all that it makes smaller. Raises ConfigError without compressed-tensors.
    """
    tensors = (OutputTensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in spec.tensors)
    weights = {f"{m.stored}.weight" for m in spec.matrices if not (m.is_head or m.transposed)}
    base = OutputFile(name="", tensors=tuple(tensors))
    return file_bytes(with_fewer_bits(base, weights, scheme, spec.dtype))


def with_fewer_bits(
    plan: OutputFile,
    weights: Collection[str],
    scheme: Scheme,
    dtype: str,
    group_size: int | None = None,
) -> OutputFile:
    """Plan the file that `quantize` makes of another if it quantises these weights, in its order:
    that of the names. `dtype` is that of the checkpoint. Raises ConfigError without
    compressed-tensors.
    """
    require_installed()
    tensors = list[OutputTensor]()
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.name):
        fewer = tensor.name in weights
        tensors += _stored(tensor, scheme, dtype, group_size) if fewer else [tensor]
    return OutputFile(name=plan.name, tensors=tuple(tensors))


def _stored(
    weight: OutputTensor, scheme: Scheme, dtype: str, group_size: int | None
) -> list[OutputTensor]:
    """Return what is in the place of a weight (m, n), which stays if no group divides its row."""
    rows, columns = weight.shape
    stem = weight.name.removesuffix("weight")
    of_row = _of_row(scheme, columns, dtype, group_size)
    if of_row is None:
        return [weight]
    return [
        OutputTensor(
            name=f"{stem}{tail}",
            dtype=NAMES[one.dtype],
            shape=(rows, one.shape[1]) if one.ndim == 2 else tuple(one.shape),
        )
        for tail, one in of_row.items()
    ]


@cache
def _of_row(
    name: Scheme, columns: int, dtype: str, group_size: int | None
) -> dict[str, Tensor] | None:
    """Quantise one row: tensors with two dimensions have a row for each of the weight's."""
    from workers.quantisation.rounding import input_range, quantised
    from workers.quantisation.schemes import scheme_for

    try:
        scheme = scheme_for(name, columns, group_size)
    except ValueError:
        return None
    found = quantised(torch.ones(1, columns), scheme, DTYPES[dtype]).stored
    return found | input_range(scheme, torch.ones(()))
