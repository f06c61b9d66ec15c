"""Truncation as SVD-LLM prints it (arXiv 2403.07378, Algorithm 1): whitening by Cholesky."""

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.errors import NumericsError
from workers.truncation.basis import Basis, thin_svd

_RIDGES = tuple(10.0**power for power in range(-10, 0))


def svd_llm(weight: Float[Tensor, "m n"], gram: Float[Tensor, "n n"]) -> Basis:
    """W' = U_k S_k V_k^T S^-1 with S S^T = C and W S = U S V^T, in float64.

    `weight` (m, n), `gram` (n, n) = C. Each factor takes the square root of the singular values,
    as in the paper. If C is not positive definite, C + r mean(diag C) I is used, with the least r
    of 1e-10, 1e-9, ..., 0.1 that makes it so; r is recorded. Raises NumericsError if none does.
    """
    weight, gram = weight.double(), gram.double()
    root, fallbacks = _cholesky(gram)
    u, s, vt = thin_svd(weight @ root)
    whitened = torch.linalg.solve_triangular(root, vt, upper=False, left=False)
    scale = s.sqrt()
    return Basis(s.square(), u * scale, scale[:, None] * whitened, "none", fallbacks)


def _cholesky(gram: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    root, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        return root, ()
    mean = gram.diagonal().mean()
    for ridge in _RIDGES:
        shifted = gram.clone()
        shifted.diagonal().add_(ridge * mean)
        root, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            return root, (f"X^T X not positive definite: ridge of {ridge:.0e} mean diagonal added",)
    raise NumericsError(
        "X^T X is not positive definite even with a ridge of 0.1 of its mean diagonal"
    )
