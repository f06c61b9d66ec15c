"""How ranks are shared out among matrices: one file per method, `Ranks` from all of them."""

from schemas.request.config import AllocationConfig, Factors
from workers.allocation.budget import MatrixLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

__all__ = ["MatrixLoss", "Ranks", "allocate"]


def allocate(
    asked: AllocationConfig, losses: list[MatrixLoss], ratio: float, factors: Factors
) -> Ranks:
    """The ranks of all matrices by the method that was asked for. Raises as that method does."""
    if asked.method == "svd-llm-v2":
        return svd_llm_v2(losses, ratio, factors, asked.max_ratio)
    return {"loss-aware": loss_aware, "uniform": uniform}[asked.method](losses, ratio, factors)
