"""The values of quantised tensors, in bfloat16."""

from collections.abc import Sequence

import torch
from torch import Tensor

_BIAS = 127  # of the exponents of MXFP4's scales
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the values of four bits; the first is the sign
_ROWS = 2**14  # that are worked on at a time


def values(parts: Sequence[Tensor], block: tuple[int, int] = (1, 1)) -> Tensor:
    """Return the dense tensor, bfloat16, of quantised values and their scales.

    FP8 values are (m, n) with a scale for every `block` of rows and columns, the last of which may
    be cut short; MXFP4 ones are (..., m, groups,
    16) bytes with scales (..., m, groups), and give (..., 32 groups, m).
    """
    quantised, scales = parts
    if quantised.dtype == torch.uint8:
        return _mxfp4(quantised, scales)
    wide = scales.float()
    for axis, size in enumerate(quantised.shape):
        wide = wide.repeat_interleave(block[axis], axis).narrow(axis, 0, size)
    return quantised.float().mul_(wide).to(torch.bfloat16)


def _mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=blocks.device)
    rows, exponents = blocks.flatten(0, -3), (scales.int() - _BIAS).flatten(0, -2)
    parts = []
    for part, exponent in zip(torch.split(rows, _ROWS), torch.split(exponents, _ROWS), strict=True):
        pairs = torch.stack([part & 15, part >> 4], -1).flatten(-2)  # the lower bits come first
        parts.append(torch.ldexp(table[pairs.int()], exponent[..., None]).to(torch.bfloat16))
    dense = torch.cat(parts).flatten(-2).view(*blocks.shape[:-2], -1)
    return dense.transpose(-1, -2).contiguous()
