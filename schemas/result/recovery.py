"""What a recovery did and found."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.recovery import RecoveryConfig, RefinementConfig


class Look(Schema):
    """The state after some steps: the mean loss a position on held-out windows, and on the windows
    trained on since the look before; None if it is not finite, or nothing was trained on.
    """

    phase: int = Field(0, description="Of training: a number of `RecoveryConfig.phases`")
    step: int
    tokens: int = Field(description="Trained on so far")
    held_out: float | None
    loss: float | None


class Refined(Schema):
    """A layer was trained alone: the error that is left of it on held-out windows, as a share; None
    if nothing of it is cut.
    """

    layer: int
    left: float | None


class RecoveryResult(Schema):
    """How factors were trained: `looks` in order, and the number of the `best`, which is the
    result. The first is before any training, the second after refinement if there was one.

    `refined` has a share for each layer, of `Refined`. `windows` is how many different ones there
    were to train on, `seconds` the time of training, `peak_bytes` the anonymous memory of its first
    worker at its peak.
    """

    config: RecoveryConfig
    refinement: RefinementConfig
    refined: tuple[float | None, ...]
    windows: int
    parameters: int
    steps: int
    best: int
    looks: tuple[Look, ...]
    workers: int
    seconds: float
    peak_bytes: int | None = None

    @property
    def before(self) -> float | None:
        """The loss on held-out windows before the first step."""
        return self.looks[0].held_out

    @property
    def after(self) -> float | None:
        """The same of the best state."""
        return self.looks[self.best].held_out
