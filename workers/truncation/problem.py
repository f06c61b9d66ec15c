"""A matrix, its moments and the way it is cut."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import NumericsError
from schemas.request.gradients import GRADIENT_TOKENS
from schemas.request.methods import TRUNCATIONS, Truncation, TruncationRow
from workers.calibration.moments import Moment
from workers.truncation.asvd import asvd
from workers.truncation.basis import Basis, Through
from workers.truncation.fwsvd import fwsvd
from workers.truncation.scaled import identity, scaled_svd
from workers.truncation.shrinkage import less_correlated
from workers.truncation.svd_llm import svd_llm
from workers.truncation.svd_llm_v2 import svd_llm_v2
from workers.truncation.two_sided import (
    Metric,
    Root,
    Weighing,
    achieved_loss,
    eigen_root,
    metric_of,
    two_sided,
)

_BASES: dict[Truncation, Callable[[Tensor, Tensor], Basis]] = {
    "svd-llm": svd_llm,
    "svd-llm-v2": svd_llm_v2,
}
"""Truncations on the full Gram: W (m, n) and X^T X (n, n) to a basis."""
_SCALES: dict[Truncation, Callable[[Tensor, Tensor | None], Tensor]] = {
    "asvd": asvd,
    "fwsvd": fwsvd,
    "svd": identity,
}
"""Scaled truncations: E|x| (n,) and the Fisher information (n,) of W's columns, if it was taken, to
the scales (n,). All others are two-sided.
"""


class Problem(NamedTuple):
    """One matrix to cut: W (m, n), its moments, and the objective.

    `shrinkage` is the s of the gradient moment; if None, it is chosen from the data.
    `input_shrinkage` is that of the input moment, whose diagonal (1, n) is `features`; only weighed
    truncations have one, and only on the output side `features` are needed.
    """

    truncation: Truncation
    weight: Tensor
    forward: Moment
    backward: Moment | None
    shrinkage: float | None = None
    input_shrinkage: float = 0.0
    features: Moment | None = None

    def root(self) -> Root | None:
        """The root of the forward moment, shared by matrices that read the same input.

        None if the truncation does not start from it. Raises as `basis` does.
        """
        self.require_finite()
        row = self._row
        if row.full_gram or row.scaled or self.weight.shape[0] <= self.weight.shape[1]:
            return None
        return eigen_root(self._shrunk())

    def basis(self, root: Root | None = None) -> Basis:
        """The optimal basis, in float64; `root` is the root of an equal forward moment, if known.

        Raises NumericsError if W or a moment is not finite.
        """
        self.require_finite()
        basis = self._decompose(root)
        if not basis.eigenvalues.numel():
            return self._nothing()
        return basis

    def loss(self, basis: Basis, rank: int) -> float:
        """The achieved loss at a rank: the objective itself, evaluated on the factors."""
        if not (self._row.scaled or self._row.full_gram):
            return achieved_loss(self.weighing(), basis, rank)
        a, b = basis.factors(self.weight.double(), rank)
        error = self.weight.double() - a @ b
        if self._row.scaled:
            return float((error * self._scales().double()).square().sum())
        return float(((error @ self._moment().double()) * error).sum())

    @property
    def nats(self) -> float | None:
        """Increase of the mean token loss, in nats, per unit of this problem's loss.

        Half the Fisher-weighted loss is the second-order estimate of that increase. A loss in units
        of layer outputs is weighed by the mean gradient energy tr G / m; None without gradients, or
        if the loss is of a scaled matrix.
        """
        if self._row.scaled:
            return None
        if self._row.weighed and not self._without_gradient:
            return 0.5
        return None if self.backward is None else 0.5 * self.backward.trace / self.weight.shape[0]

    def remarks(self) -> tuple[str, ...]:
        """Describe moments with too few rows."""
        found = []
        size = self._moment().shape[0]  # 1 of a diagonal
        if self.forward.tokens < size:
            found.append(f"forward moment of size {size} from {self.forward.tokens} tokens")
        small, backward = min(self.weight.shape), self.backward
        if self._row.weighed and backward and backward.tokens < GRADIENT_TOKENS * small:
            found.append(
                f"gradient moment of size {small} from {backward.tokens} tokens, "
                f"{backward.tokens / small:.3g} a dimension; {GRADIENT_TOKENS} are advised"
            )
        return tuple(found)

    def require_finite(self) -> None:
        """Raises NumericsError if W or a moment is not finite."""
        if not bool(torch.isfinite(self.weight).all()):
            raise NumericsError("the weight holds NaN or Inf; repair the checkpoint")
        for moment in (self.forward, self.features, self.backward):
            if moment and moment.matrix is not None and not moment.matrix.isfinite().all():
                raise NumericsError("a moment holds NaN or Inf; calibrate with --dtype float32")

    @property
    def _row(self) -> TruncationRow:
        return TRUNCATIONS[self.truncation]

    @property
    def _without_gradient(self) -> bool:
        return self.backward is None or self.backward.trace == 0.0

    def _moment(self) -> Tensor:
        if self.forward.matrix is None:
            raise NumericsError("the forward moment was not accumulated")
        return self.forward.matrix

    def _scales(self) -> Tensor:
        gradients = None if self.backward is None else self.backward.matrix
        return _SCALES[self.truncation](
            self._moment()[0], None if gradients is None else gradients[0]
        )

    def weighing(self) -> Weighing:
        """Return the two-sided objective. Raises as `basis` does."""
        return Weighing(self.metric(), self._shrunk())

    def metric(self) -> Metric:
        """Return what weighs an error of W."""
        weighs = self._row.weighed and not self._without_gradient
        return metric_of(self.weight, self.backward if weighs else None, self.shrinkage)

    def _shrunk(self) -> Tensor:
        """Return the forward moment in float64, as the truncation takes it."""
        moment = self._moment().double()
        if not self._row.weighed:
            return moment
        diagonal = None if self.features is None else self.features.matrix
        return less_correlated(moment, self.weight, diagonal, self.input_shrinkage)

    def _decompose(self, root: Root | None) -> Basis:
        two_sides = not (self._row.scaled or self._row.full_gram)
        weighing = self.weighing() if two_sides else None
        moment = self._moment() if weighing is None else weighing.content
        if not bool(moment.any()):
            return self._nothing()
        if self._row.full_gram:
            return _BASES[self.truncation](self.weight, moment)
        if weighing is None:
            basis, instead = scaled_svd(self.weight, self._scales()), "plain SVD"
        else:
            basis, instead = two_sided(weighing, root), "input-only"
        if self._row.needs_gradients and self._without_gradient:
            note = f"no gradient reaches this matrix: cut as {instead}"
            return basis._replace(fallbacks=(*basis.fallbacks, note))
        return basis

    def _nothing(self) -> Basis:
        out_features, in_features = self.weight.shape
        through: Through = "left" if out_features > in_features else "right"
        if self._row.full_gram or self._row.scaled:
            through = "none"
        zeros = self.weight.new_zeros(1, max(out_features, in_features), dtype=torch.float64)
        rows = in_features if through == "left" else out_features
        columns = out_features if through == "right" else in_features
        note = "no output on the calibration text: stored as zero"
        return Basis(zeros[:, 0], zeros[:, :rows].T, zeros[:, :columns], through, (note,))
