"""How far a second moment is shrunk toward a known target."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workers.calibration.moments import Moment, row_blocks


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


def less_correlated(
    moment: Float64[Tensor, "q q"],
    weight: Float[Tensor, "m n"],
    features: Float[Tensor, "1 n"] | None,
    share: float,
) -> Float64[Tensor, "q q"]:
    """The forward moment of W (m, n) if its inputs had C_s = (1 - s) C + s diag C, s = `share`.

    `moment` is C (n, n) if m > n, else W C W^T (m, m) with diag C (1, n) as `features`. Features
    keep their energy and lose a part of their correlation: that is what differs most from one kind
    of text to another, and no number of tokens of one kind makes up for it. Raises ValueError if
    `features` are needed and not given.
    """
    if not share:
        return moment
    if weight.shape[0] > weight.shape[1]:
        return torch.lerp(moment, moment.diagonal().diag(), share)
    if features is None:
        raise ValueError("on the output side the diagonal of the input moment is needed")
    target = torch.zeros_like(moment)
    for columns in row_blocks(*weight.T.shape):
        block = weight[:, columns].double()
        target.addmm_(block * features[0, columns], block.T)
    return torch.lerp(moment, target, share)


def firing_more(
    moment: Float64[Tensor, "q q"], share: float, floor: float
) -> Float64[Tensor, "q q"]:
    """The moment C (q, q) of neurons as it may be on other text: less correlated by `share`, as
    the inputs of a layer are, and with more energy in each, `floor` times the mean one.

    Many neurons fire rarely. What hardly fires in the calibration text seems to cost nothing, and
    may be what other text needs.
    """
    energies = moment.diagonal().clone()
    found = moment * (1 - share)
    found.diagonal().copy_(energies + floor * energies.mean())
    return found
