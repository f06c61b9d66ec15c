"""How ranks are shared out among matrices: `Ranks` from every method."""

from collections.abc import Sequence

from schemas.model.spec import Factors
from schemas.request.groups import AllocationConfig
from schemas.request.methods import ALLOCATIONS
from workers.allocation.budget import MatrixLoss, NeuronsLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

__all__ = ["MatrixLoss", "NeuronsLoss", "Ranks", "allocate"]


def allocate(
    asked: AllocationConfig,
    losses: list[MatrixLoss],
    ratio: float,
    factors: Factors,
    neurons: Sequence[NeuronsLoss] = (),
) -> Ranks:
    """Return the ranks of all matrices by the requested method, which may remove `neurons` instead.
    Raises as that method does.
    """
    row = ALLOCATIONS[asked.method]
    if row.nats:
        less = neurons if row.neurons else ()
        least = asked.min_ratio if row.ranks else 1.0
        return loss_aware(losses, ratio, factors, less, least, row.one_width)
    if row.bounded:
        return svd_llm_v2(losses, ratio, factors, asked.max_ratio)
    return uniform(losses, ratio, factors)
