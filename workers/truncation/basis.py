"""The result of a truncation: the factors of any rank are a slice of it."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

Through = Literal["left", "right", "none"]
_LAPACK_BOUND = 50.0


class Basis(NamedTuple):
    """Eigenvalues (q,), descending, and W'_k = A_k B_k for every k <= q.

    `through` names the factor that is a product with W (m, n), so that it need not be stored:
    "right": A = left[:, :k] (m, k), B = right[:k] W; right is (q, m).
    "left":  A = W left[:, :k], B = right[:k] (k, n); left is (n, q).
    "none":  A = left[:, :k], B = right[:k].
    Truncating at k loses sum(eigenvalues[k:]) of the squared norm that the truncation minimises.
    `shrinkage` is the s of the gradient moment; None if no gradient weighs.
    """

    eigenvalues: Float[Tensor, " q"]
    left: Float[Tensor, "rows q"]
    right: Float[Tensor, "q columns"]
    through: Through
    fallbacks: tuple[str, ...] = ()
    shrinkage: float | None = None

    def factors(
        self, weight: Float[Tensor, "m n"], rank: int
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k n"]]:
        """A (m, k) and B (k, n) of W (m, n), in the dtype of the basis."""
        left, right = self.left[:, :rank], self.right[:rank]
        weight = weight.to(left)
        if self.through == "left":
            return weight @ left, right
        if self.through == "right":
            return left, right @ weight
        return left, right


def positive_eigh(
    matrix: Float[Tensor, "n n"],
) -> tuple[Float[Tensor, " q"], Float[Tensor, "n q"]]:
    """Positive eigenvalues (q,), descending, and their eigenvectors (n, q), of a symmetric PSD
    matrix.

    The one cutoff of this program: an eigenvalue at or below n * eps * (largest) is rounding noise
    of `eigh` itself and counts as zero; so do negative ones, which a PSD matrix has by rounding
    only. Raises LinAlgError if the solver fails or its result is not a decomposition.
    """
    matrix = (matrix + matrix.T) / 2
    values, vectors = torch.linalg.eigh(matrix)
    _require_decomposition(matrix, values, vectors)
    values, vectors = values.flip(0), vectors.flip(1)
    cutoff = values[0].clamp(min=0) * matrix.shape[0] * torch.finfo(matrix.dtype).eps
    rank = int((values > cutoff).sum())
    return values[:rank], vectors[:, :rank]


def thin_svd(
    matrix: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m q"], Float[Tensor, " q"], Float[Tensor, "q n"]]:
    """U (m, q), S (q,) and V^T (q, n) of a matrix (m, n), q = min(m, n).

    CUDA uses QR iteration: its default is Jacobi's method, which may not converge on
    ill-conditioned input. Raises LinAlgError if the solver fails, or returns NaN.
    """
    driver = "gesvd" if matrix.is_cuda else None
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False, driver=driver)
    if not s.isfinite().all():
        raise LinAlgError(f"singular values on {matrix.device.type} are not finite")
    return u, s, vt


def _require_decomposition(matrix: Tensor, values: Tensor, vectors: Tensor) -> None:
    """Raises LinAlgError if A V = V L or V^T V = I fails by more than rounding.

    LAPACK accepts its own solvers by the same ratios and bound (dchkst):
    |A V - V L| / (|A| n eps) and |V^T V - I| / (n eps), here together below 50. A correct solver
    stays near 1.
    """
    size, eps = len(matrix), torch.finfo(matrix.dtype).eps
    product = vectors.T @ vectors  # and then in place: a matrix at a time is all that it takes
    product.diagonal().sub_(1)
    orthogonality = float(torch.linalg.matrix_norm(product, 1))
    del product
    residual = float(torch.linalg.matrix_norm((matrix @ vectors).sub_(vectors * values), 1))
    scale = float(torch.linalg.matrix_norm(matrix, 1)) or 1.0
    error = (orthogonality + residual / scale) / (size * eps)
    if not error < _LAPACK_BOUND:  # true for NaN, too
        raise LinAlgError(
            f"eigenvectors of a {size} x {size} moment on {matrix.device.type} are wrong: an error "
            f"of {error:.3g} n eps, where {_LAPACK_BOUND:g} are allowed"
        )
