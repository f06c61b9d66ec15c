"""The scales of ASVD (arXiv 2312.05821, section 3.2): how large each input is on average."""

from jaxtyping import Float
from torch import Tensor

_ALPHA = 0.5


def asvd(magnitudes: Float[Tensor, " n"], gradients: Float[Tensor, " n"] | None) -> Tensor:
    """S_j = (mean over tokens of |x_j|)^alpha, alpha = 0.5 as in the paper.

    `magnitudes` (n,) are these means.
    """
    return magnitudes.double() ** _ALPHA
