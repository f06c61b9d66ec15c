"""Inputs and results of every allocation, and the arithmetic of ranks and parameters."""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from schemas.model.grid import neuron_grid, rank_grid
from schemas.model.spec import Factors, MatrixSpec, Neurons, whole
from workers.allocation.search import last


class MatrixLoss(NamedTuple):
    """One matrix as an allocation sees it.

    `eigenvalues` (q,) float64, descending: truncating at k loses sum(eigenvalues[k:]) a token.
    `nats` converts that into the increase of the token loss, if gradients were taken. `multiple` is
    what ranks are asked to be multiples of.
    """

    matrix: MatrixSpec
    eigenvalues: Float64[Tensor, " q"]
    nats: float | None
    tokens: int
    multiple: int = 1

    def tail(self) -> Float64[Tensor, " ranks"]:
        """Loss at rank 0, 1, ..., q: (q + 1,) float64."""
        sums = self.eigenvalues.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])

    @property
    def ranks(self) -> int:
        """The largest rank that is worth storing: a matrix of full rank is stored dense."""
        return min(self.eigenvalues.numel(), self.matrix.small - 1)

    @property
    def grid(self) -> int:
        """What this matrix' ranks are multiples of: less than `multiple` if it has few of them."""
        return rank_grid(self.multiple, self.ranks)


def unranked(matrix: MatrixSpec) -> MatrixLoss:
    """Return a matrix whose rank stays as it is: it needs no spectrum, and loses nothing."""
    return MatrixLoss(matrix, torch.zeros(0, dtype=torch.float64), nats=0.0, tokens=0)


class NeuronsLoss(NamedTuple):
    """The neurons of an MLP as an allocation sees them.

    `losses` (r,) float64: removing the first 1, 2, ... in their order loses so much a token, which
    `nats` converts. `multiple` is what ranks are asked to be multiples of.
    """

    neurons: Neurons
    losses: Float64[Tensor, " r"]
    nats: float
    multiple: int = 1

    @property
    def grid(self) -> int:
        """What numbers of kept neurons are multiples of."""
        return neuron_grid(self.multiple, self.neurons.count)


class Ranks(NamedTuple):
    """The rank of every matrix, None if it stays dense, and the method's fallbacks. The `pruned`
    ones lack some neurons; their rank is how many are left.
    """

    ranks: dict[str, int | None]
    fallbacks: tuple[str, ...] = ()
    pruned: frozenset[str] = frozenset()

    def parameters(self, losses: list[MatrixLoss], factors: Factors) -> int:
        """Return the parameters of all matrices at these ranks."""
        return sum(
            loss.matrix.parameters_at(
                factors, self.ranks[loss.matrix.name], loss.matrix.name in self.pruned
            )
            for loss in losses
        )


def rank_within(loss: MatrixLoss, factors: Factors, budget: float) -> int | None:
    """Return the largest rank on the grid with at most `budget` parameters; None if all of W fits.

    Never below the lowest on the grid, nor above the number of eigenvalues.
    """
    budget = whole(budget)
    if budget >= loss.matrix.size:
        return None

    def fits(step: int) -> bool:
        return loss.matrix.stored_parameters(factors, step * loss.grid) <= budget

    return last(fits, 1, max(loss.ranks // loss.grid, 1) + 1) * loss.grid
