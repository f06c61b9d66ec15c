"""Truncation by a plain SVD of W whose columns are scaled by their importance.

SVD, ASVD and FWSVD differ in the scales alone. None of them sees how inputs are correlated.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from workers.truncation.basis import Basis, thin_svd

_LEAST = 1e-6  # of the largest scale: below it, 1 / scale would be rounding noise


def scaled_svd(weight: Float[Tensor, "m n"], scales: Float[Tensor, " n"]) -> Basis:
    """W' = U_k S_k V_k^T D^-1 with D = diag(scales) and W D = U S V^T, in float64.

    Minimises ||(W - W') D||_F. A scale below 1e-6 of the largest is raised to that, and recorded.
    """
    weight, scales = weight.double(), scales.double()
    least = _LEAST * scales.max()
    low = int((scales < least).sum())
    scales = scales.clamp(min=least)
    u, s, vt = thin_svd(weight * scales)
    root = s.sqrt()
    note = f"{low} of {len(scales)} inputs have a scale below {_LEAST:g} of the largest: raised"
    down = root[:, None] * vt / scales
    return Basis(s.square(), u * root, down, "none", (note,) if low else ())


def identity(magnitudes: Float[Tensor, " n"], gradients: Float[Tensor, " n"] | None) -> Tensor:
    """The scales of plain SVD, the best rank k in the Frobenius norm (Eckart and Young 1936); of a
    matrix without any input, whose error costs nothing, they are zeros.
    """
    return torch.ones_like(magnitudes) if magnitudes.any() else torch.zeros_like(magnitudes)
