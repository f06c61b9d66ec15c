"""Operations on a matrix, as the code does them, and bytes in which it or neurons are cut.

A product (a, b) (b, c) is 2 a b c, a symmetric eigenproblem with vectors 9 n^3, Cholesky n^3 / 3, a
thin SVD (m, n) 6 m n^2 + 20 n^3 (Golub and Van Loan, 8.6), with n the smaller side.
"""

from collections.abc import Sequence
from typing import NamedTuple

from schemas.model.spec import MatrixSpec, Neurons
from schemas.request.methods import TRUNCATIONS, Truncation

_BLOCK = 2**22  # elements at a time, as in workers/calibration/moments.py


def rank_at(matrix: MatrixSpec, keep: float, pivoted: bool) -> int:
    """Return the rank at which k (m + n), or k (m + n - k) if pivoted, is `keep` of m n."""
    sides, target = matrix.out_features + matrix.in_features, keep * matrix.size
    if not pivoted:
        return max(1, int(target / sides))
    return max(1, int((sides - (sides**2 - 4 * target) ** 0.5) / 2))


class BasisFlops(NamedTuple):
    """Operations of bases, grouped by their rate; `products` are all outside the solvers."""

    eigen: float
    svd: float
    products: float


def summed(found: Sequence[BasisFlops]) -> BasisFlops:
    return BasisFlops(*(sum(one[kind] for one in found) for kind in range(3)))


def basis_flops(truncation: Truncation, matrix: MatrixSpec, rooted: bool) -> BasisFlops:
    """Count one basis; `rooted`: the root of its input's moment is known from another matrix that
    reads the same input.
    """
    m, n, small = matrix.out_features, matrix.in_features, matrix.small
    svd = 6 * max(m, n) * small**2 + 20 * small**3
    row = TRUNCATIONS[truncation]
    if row.scaled:
        return BasisFlops(0, svd, 2 * matrix.size)
    if row.cholesky:
        return BasisFlops(0, svd, n**3 / 3 + 2 * m * n**2 + small * n**2)
    if row.full_gram:
        return BasisFlops(9 * n**3, svd, 2 * m * n**2 + 2 * small * n**2)
    products = 8 * small**3  # F^T inner F, F V and inner (F V)
    if matrix.side == "input":
        return BasisFlops((9 if rooted else 18) * small**3, 0, products + 2 * m * n**2)
    shrunk = 2 * n * m**2 if row.weighed else 0  # W diag C W^T
    return BasisFlops(9 * small**3, 0, products + small**3 / 3 + shrunk)


def order_flops(neurons: Neurons) -> BasisFlops:
    """Count the order in which q neurons are removed: the inverse of their moment; and for each of
    them a product of what W reads with a vector, at the speed of memory as in an eigensolver, and
    an outer product taken off both matrices, a third and a half of them on average.
    """
    m, q = min(neurons.reader.out_features, neurons.count), neurons.count
    return BasisFlops(m * q**2, 0, 2 * q**3 + 2 * q**3 / 3 + m * q**2)


def order_bytes(neurons: Neurons) -> int:
    """Bytes in which neurons are ordered or removed: four moments of them, and three times what is
    read of them, in float64.
    """
    return 8 * (4 * neurons.count**2 + 3 * neurons.reader.size)


def cut_bytes(matrix: MatrixSpec) -> int:
    """Bytes in which a matrix is truncated, in float64: W twice, or instead factors as computed and
    as stored; three squares of its smaller side; and four blocks of W, which compare its factors.
    """
    return 8 * (2 * matrix.size + 3 * matrix.small**2 + 4 * min(matrix.size, _BLOCK))


def prune_flops(neurons: Neurons, keep: float) -> float:
    """Count the removal of neurons: what reads k of q is foretold twice, of W and of what weighs
    it, and two products with their moment give the loss and the energy.
    """
    m, q = neurons.reader.out_features, neurons.count
    k = keep * q
    return 2 * (k**3 / 3 + 2 * m * k * q + 2 * m * k**2) + 2 * 2 * m * q**2


def factor_flops(matrix: MatrixSpec, rank: int) -> float:
    """One factor is a product with W; LU and a triangular solve give the pivoted form; the product
    of the factors is taken both as computed and as stored; the achieved loss takes three squares,
    and W D W^T or its like of the smaller side.
    """
    m, n, small = matrix.out_features, matrix.in_features, matrix.small
    metric = 2 * matrix.size * small
    pivoting = rank**2 * (m - rank / 3) + (m - rank) * rank**2 + 2 * rank**2 * n
    written = 2 * (2 * m * rank * n)
    return 2 * m * n * rank + pivoting + written + metric + 2 * small**2 * rank + 4 * small**3
