"""How the ratio that keeps a budget was found."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.budget import BudgetConfig


class Trial(Schema):
    """One ratio that was tried."""

    ratio: float
    predicted: float | None = Field(
        description="Increase of the mean token loss that the spectra predict, in nats"
    )
    measured: float = Field(
        description="What the budget limits, in nats a token: KL from the base, or the increase of "
        "the mean token loss"
    )
    perplexity: float
    kl: float | None
    kept: bool = Field(description="Whether it keeps the budget")


class BudgetResult(Schema):
    """A budget, and what was tried to keep it.

    `identity` is of the budget and of the text on which its trials were measured. `limit` and
    `reached`, what the checkpoint has of it, are bytes, parameters or nats a token; an increase of
    perplexity by p is log(1 + p) nats. `predicted` is the ratio that the spectra alone chose, None
    if there was nothing to measure.
    """

    asked: BudgetConfig
    identity: str
    limit: float
    reached: float
    predicted: float | None = None
    trials: tuple[Trial, ...] = ()
