"""How far a second moment of few rows is shrunk toward a known target."""

from jaxtyping import Float64
from torch import Tensor

from workers.calibration.moments import Moment


def ledoit_wolf(moment: Moment, target: Float64[Tensor, "q q"]) -> float:
    """The share s of `target` in (1 - s) S + s T that is nearest to the true moment, in [0, 1].

    S (q, q) = E[x x^T] over t rows, T (q, q) = `target`, both in float64. The expected squared
    error |(1 - s) S + s T - true|_F^2 is least at s = b^2 / d^2, where d^2 = |S - T|_F^2 and
    b^2 = (E|x|^4 - |S|_F^2) / t is the variance of S (Ledoit and Wolf, J. Multivariate Anal. 88,
    2004, lemma 3.1 and section 3.2; there T is a multiple of the identity).
    """
    if moment.matrix is None or not moment.tokens:
        raise ValueError("shrinkage is of a moment that was accumulated")
    matrix = moment.matrix.to(target)
    distance = float((matrix - target).square().sum())
    variance = max(moment.fourth - float(matrix.square().sum()), 0.0) / moment.tokens
    return min(1.0, variance / distance) if distance > 0 else 0.0
