"""The scales of FWSVD (arXiv 2207.00112, section 4): the Fisher information of each input."""

from jaxtyping import Float
from torch import Tensor

from schemas.errors import NumericsError
from workers.truncation.scaled import identity


def fwsvd(magnitudes: Float[Tensor, " n"], gradients: Float[Tensor, " n"] | None) -> Tensor:
    """S_j = (sum over outputs i of E[(dL/dW_ij)^2])^1/2, up to a factor that all j share.

    `gradients` (n,) are the means of these squares. The paper writes Y = X W, so its rows of W are
    inputs, the columns of W here. If all are zero, every input counts the same, as in plain SVD.
    Raises NumericsError if no gradients were taken.
    """
    if gradients is None:
        raise NumericsError("FWSVD needs gradients; calibrate with --gradient-samples")
    return gradients.double().sqrt() if gradients.any() else identity(magnitudes, gradients)
