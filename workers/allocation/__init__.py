"""How ranks are shared out among matrices: one file per method, `Ranks` from all of them."""

from collections.abc import Callable

from schemas.model.spec import Factors
from schemas.request.groups import AllocationConfig
from schemas.request.methods import ALLOCATIONS, Allocation
from workers.allocation.budget import MatrixLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

__all__ = ["MatrixLoss", "Ranks", "allocate"]

_METHODS: dict[Allocation, Callable[..., Ranks]] = {
    "loss-aware": loss_aware,
    "svd-llm-v2": svd_llm_v2,
    "uniform": uniform,
}


def allocate(
    asked: AllocationConfig, losses: list[MatrixLoss], ratio: float, factors: Factors
) -> Ranks:
    """Return the ranks of all matrices by the requested method. Raises as that method does."""
    bound = (asked.max_ratio,) if ALLOCATIONS[asked.method].bounded else ()
    return _METHODS[asked.method](losses, ratio, factors, *bound)
