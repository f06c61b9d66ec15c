"""What a recovery did and found."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.recovery import RecoveryConfig


class Look(Schema):
    """The state after some steps: the mean loss a position on held-out windows, and on the windows
    trained on since the look before.
    """

    step: int
    tokens: int = Field(description="Trained on so far")
    held_out: float
    loss: float | None


class RecoveryResult(Schema):
    """A recovery: `looks` in order, `step` of the best state, which is the result.

    `windows` is how many different ones there were to train on, `seconds` the time of training.
    """

    config: RecoveryConfig
    windows: int
    parameters: int
    steps: int
    step: int
    looks: tuple[Look, ...]
    workers: int
    seconds: float

    @property
    def before(self) -> float:
        """The loss on held-out windows before the first step."""
        return self.looks[0].held_out

    @property
    def after(self) -> float:
        """The same of the best state."""
        return next(look.held_out for look in self.looks if look.step == self.step)
