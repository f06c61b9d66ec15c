"""Pivoted factors: A B without loss in k (m + n - k) parameters (PIFA, ICML 2025)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


class Pivoted(NamedTuple):
    """W' = A B as W'[i] = concat(rows, interpolation @ rows)[order[i]].

    `rows` (k, n) are k rows of W', `interpolation` (m - k, k) is T, `order` (m,) int64 a
    permutation.
    """

    rows: Float[Tensor, "k n"]
    interpolation: Float[Tensor, "m-k k"]
    order: Int64[Tensor, " m"]

    @property
    def magnitude(self) -> float:
        """max |T|: how much a rounding error of `rows` can grow. Infinite if T is not finite."""
        if not self.interpolation.numel():
            return 0.0
        low, high = map(float, self.interpolation.aminmax())
        return max(-low, high) if math.isfinite(low + high) else math.inf


def pivot(a: Float64[Tensor, "m k"], b: Float64[Tensor, "k n"]) -> Pivoted:
    """Re-encode A (m, k) B (k, n), k <= m, by LU with partial pivoting.

    P A = [L_top; L_rest] U, so the rows that P puts first determine the others:
    T = L_rest L_top^-1. This holds for a singular U, too, as of a matrix stored as zero.
    """
    out_features, rank = a.shape
    lu, swaps, _ = torch.linalg.lu_factor_ex(a)
    permutation = _permutation(swaps, out_features)
    top, rest = lu[:rank], lu[rank:]
    interpolation = torch.linalg.solve_triangular(
        top, rest, upper=False, left=False, unitriangular=True
    )
    rows = a[permutation[:rank]] @ b
    return Pivoted(rows, interpolation, permutation.argsort())


def _permutation(swaps: Tensor, size: int) -> Int64[Tensor, " size"]:
    """Turn LAPACK's row swaps (1-based) into p (size,): row i of P A is row p[i] of A."""
    permutation = list(range(size))
    for row, other in enumerate(swaps.tolist()):
        permutation[row], permutation[other - 1] = permutation[other - 1], permutation[row]
    return torch.tensor(permutation, device=swaps.device)
