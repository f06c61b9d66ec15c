"""Which ranks there are, and whether a ratio leaves every matrix one, from shapes alone."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from schemas.base import Schema
from schemas.errors import ConfigError
from schemas.model.grid import neuron_grid, rank_grid
from schemas.model.spec import Factors, MatrixSpec, ModelSpec, whole
from schemas.request.config import RunConfig
from schemas.request.methods import ALLOCATIONS
from schemas.run.targets import budgets

# Matrix units of a GPU compute in tiles (arXiv 2604.09595). On a CPU, oneDNN makes a kernel for
# each shape of a product in bfloat16, for each length of prompt, so there should be few shapes.
_MULTIPLES = {"cuda": 64, "cpu": 32}


def with_rank_multiple(config: RunConfig, device: str) -> RunConfig:
    """Set what ranks are multiples of on this kind of device, if nothing was asked for."""
    asked = config.allocation
    if asked.rank_multiple is not None:
        return config
    settled = asked.model_copy(update={"rank_multiple": _MULTIPLES.get(device, 1)})
    return config.model_copy(update={"allocation": settled})


def require_ranks(config: RunConfig, spec: ModelSpec) -> None:
    """Raises ConfigError if a ratio is so high that the rank of some matrix would be zero.

    If their losses are in nats the matrices of one ratio share a budget; else each has its own.
    Before `with_rank_multiple` it asks for any rank, then for one on the grid. Raises ConfigError,
    too, if neurons alone are to go and there are none.
    """
    if config.budget.asked:
        _require_neurons(config, spec.matrices)
    for asked in config.ratio or (0.0,):  # a budget finds it, but not those of `ratio_by`
        for ratio, matrices in budgets(config, spec.matrices, asked):
            _require_ranks(config, ratio, matrices)


def _require_ranks(config: RunConfig, ratio: float, matrices: list[MatrixSpec]) -> None:
    keep, size = 1 - ratio, sum(matrix.size for matrix in matrices)
    multiple = config.allocation.multiple
    if ratio:
        _require_neurons(config, matrices)
    if ALLOCATIONS[config.allocation.method].nats:
        least = least_parameters(config, matrices)
        if least > (budget := whole(keep * size)):
            what = "rank 1" if multiple == 1 else f"the lowest rank (--rank-multiple {multiple})"
            what += f" in all {len(matrices)} matrices takes"
            if not config.lowers_ranks:
                what = "the fewest neurons of every MLP, and all else dense, take"
            raise _refusal(
                ratio,
                f"{what} {least:,} parameters, more than the {budget:,} that may stay",
                1 - least / size,
            )
        return
    for matrix in matrices:
        if (least := _least(config, matrix)) > (budget := whole(keep * matrix.size)):
            highest = min(1 - _least(config, m) / m.size for m in matrices)
            raise _refusal(
                ratio,
                f"{matrix.name} ({matrix.out_features} x {matrix.in_features}) may keep "
                f"{budget:,} parameters, but rank {_lowest(config, matrix)} takes {least:,}",
                highest,
            )


def _require_neurons(config: RunConfig, matrices: Sequence[MatrixSpec]) -> None:
    if not (config.lowers_ranks or any(matrix.neurons for matrix in matrices)):
        raise ConfigError(
            f"allocation {config.allocation.method} removes nothing but neurons, and none can go "
            f"from {matrices[0].name} and the {len(matrices) - 1} matrices beside it: an MLP has "
            "to be element by element, all its matrices targeted at one ratio, and its neurons few "
            "enough for the device to order; use --allocation loss-aware"
        )


def least_parameters(config: RunConfig, matrices: Iterable[MatrixSpec]) -> int:
    """Return the parameters of matrices at their lowest ranks, or with their fewest neurons."""
    return sum(_least(config, matrix) for matrix in matrices)


def ratio_at(steps: int, step: float) -> float:
    """Return a ratio of so many steps, without the noise of the product."""
    return round(steps * step, 10)


def highest_step(config: RunConfig, spec: ModelSpec, step: float) -> int:
    """Return how many steps the ratio may be high, at which every matrix still has a rank."""

    def too_high(steps: int) -> bool:
        try:
            require_ranks(config.model_copy(update={"ratio": (ratio_at(steps, step),)}), spec)
        except ConfigError:
            return True
        return False

    return bisect_left(range(1, math.ceil(1 / step)), True, key=too_high)


def _lowest(config: RunConfig, matrix: MatrixSpec) -> int:
    return rank_grid(config.allocation.multiple, matrix.small - 1)


def _least(config: RunConfig, matrix: MatrixSpec) -> int:
    """Parameters of a matrix at its lowest rank, or with its fewest neurons if nothing else may go,
    or dense if that is smaller or the only choice.
    """
    if not config.lowers_ranks:
        if not matrix.neurons:
            return matrix.size
        fewest = neuron_grid(config.allocation.multiple, matrix.neuron_count)
        return matrix.stored_parameters(matrix.pruned, fewest)
    if matrix.small == 1:
        return matrix.size
    return min(matrix.size, matrix.stored_parameters(config.factors, _lowest(config, matrix)))


def _refusal(ratio: float, why: str, highest: float) -> ConfigError:
    most = int(max(0.0, highest) * 10_000) / 10_000
    return ConfigError(f"ratio {ratio:g}: {why}; lower the ratio, {most:g} is the most here")


class AllocationResult(Schema):
    """Ranks by matrix (None: stays dense), and the parameters they take of the budget.

    The rank of a `pruned` matrix is the number of its neurons that are kept. `nats` is the
    predicted increase of the mean token loss, if gradients were taken.
    """

    ratio: float
    ranks: dict[str, int | None]
    pruned: frozenset[str] = frozenset()
    budget: int
    parameters: int
    dense_parameters: int
    nats: float | None
    fallbacks: tuple[str, ...]

    def parameters_of(self, factors: Factors, matrix: MatrixSpec) -> int:
        """Return the parameters of a matrix as it is stored, unless pivots fall back."""
        return matrix.parameters_at(factors, self.ranks[matrix.name], matrix.name in self.pruned)
