"""The same ratio for every matrix, as in SVD-LLM (arXiv 2403.07378)."""

from schemas.model.spec import Factors
from workers.allocation.budget import MatrixLoss, Ranks, rank_within


def uniform(losses: list[MatrixLoss], ratio: float, factors: Factors) -> Ranks:
    """Each matrix gets the largest rank on its grid with at most (1 - ratio) m n parameters."""
    return Ranks(
        {
            loss.matrix.name: rank_within(loss, factors, (1 - ratio) * loss.matrix.size)
            for loss in losses
        }
    )
