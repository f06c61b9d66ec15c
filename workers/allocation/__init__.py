"""How ranks are shared out among matrices: one file per method, `Ranks` from all of them."""

from workers.allocation.budget import MatrixLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

ALLOCATIONS = {"loss-aware": loss_aware, "svd-llm-v2": svd_llm_v2, "uniform": uniform}

__all__ = ["ALLOCATIONS", "MatrixLoss", "Ranks"]
