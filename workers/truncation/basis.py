"""What a truncation returns: from it the factors of any rank are a slice."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Through = Literal["left", "right", "none"]


class Basis(NamedTuple):
    """Eigenvalues (q,), descending, and W'_k = A_k B_k for every k <= q.

    `through` names the factor that is a product with W (m, n), which keeps it out of storage:
    "right": A = left[:, :k] (m, k), B = right[:k] W; right is (q, m).
    "left":  A = W left[:, :k], B = right[:k] (k, n); left is (n, q).
    "none":  A = left[:, :k], B = right[:k].
    Truncating at k loses sum(eigenvalues[k:]) of the squared norm that the truncation minimises.
    `shrinkage` is the s of the gradient moment; None where no gradient weighs.
    """

    eigenvalues: Tensor
    left: Tensor
    right: Tensor
    through: Through
    fallbacks: tuple[str, ...] = ()
    shrinkage: float | None = None

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (m, k) and B (k, n) of W (m, n), in the dtype of the basis."""
        left, right = self.left[:, :rank], self.right[:rank]
        weight = weight.to(left)
        if self.through == "left":
            return weight @ left, right
        if self.through == "right":
            return left, right @ weight
        return left, right


def positive_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Positive eigenvalues (q,), descending, and their eigenvectors (n, q), of a symmetric PSD
    matrix.

    The one cutoff of this program: an eigenvalue at or below n * eps * (largest) is rounding noise
    of `eigh` itself and counts as zero; so do negative ones, which a PSD matrix has by rounding
    only.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    cutoff = values[0].clamp(min=0) * matrix.shape[0] * torch.finfo(matrix.dtype).eps
    rank = int((values > cutoff).sum())
    return values[:rank], vectors[:, :rank]
