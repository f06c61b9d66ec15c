"""How far a run has come."""

from schemas.config import Schema


class StageStatus(Schema):
    """Items of one stage; `total` is None where it depends on a result still to come."""

    name: str
    done: int
    total: int | None
    bytes: int


class RunStatus(Schema):
    """A run directory at one moment."""

    model: str
    stages: tuple[StageStatus, ...]
    outputs: dict[str, bool]
