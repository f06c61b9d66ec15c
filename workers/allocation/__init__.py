"""How ranks are shared out among matrices: `Ranks` from every method."""

from collections.abc import Callable, Sequence
from functools import partial

from schemas.model.spec import Factors
from schemas.request.groups import AllocationConfig
from schemas.request.methods import ALLOCATIONS, Allocation
from workers.allocation.budget import MatrixLoss, NeuronsLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

__all__ = ["MatrixLoss", "NeuronsLoss", "Ranks", "allocate"]

_METHODS: dict[Allocation, Callable[..., Ranks]] = {
    "loss-aware": loss_aware,
    "loss-aware-ranks": loss_aware,
    "loss-aware-neurons": partial(loss_aware, ranks=False),
    "loss-aware-width": partial(loss_aware, ranks=False, one_width=True),
    "svd-llm-v2": svd_llm_v2,
    "uniform": uniform,
}


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
    more = ((neurons,) if row.neurons else ()) + ((asked.max_ratio,) if row.bounded else ())
    return _METHODS[asked.method](losses, ratio, factors, *more)
