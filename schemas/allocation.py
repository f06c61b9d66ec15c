"""The ranks of a whole model at one ratio."""

from schemas.config import Schema


class AllocationResult(Schema):
    """Ranks by matrix (None: stays dense), and the parameters they take of the budget.

    `nats` is the predicted increase of the mean token loss, where gradients were taken.
    """

    ratio: float
    ranks: dict[str, int | None]
    budget: int
    parameters: int
    dense_parameters: int
    nats: float | None
    fallbacks: tuple[str, ...]
