"""How far a run has come."""

from schemas.config import Schema


class StageStatus(Schema):
    """Items of one stage; `total` is None where it depends on a result still to come."""

    name: str
    done: int
    total: int | None
    bytes: int


class Activity(Schema):
    """progress.json: what the driver does, which it writes again every few seconds.

    `spent` are the seconds of every stage so far, `left` about how many are still to come, None
    where nothing is known to tell it by. `error` is what the run failed with.
    """

    stage: str
    done: int
    total: int
    unit: str
    tokens_per_second: float | None
    spent: dict[str, float]
    left: float | None
    warnings: tuple[str, ...]
    error: str | None
    written: str


class RunStatus(Schema):
    """A run directory at one moment; `owner` is the driver that took it last."""

    model: str
    owner: str
    activity: Activity | None
    stages: tuple[StageStatus, ...]
    outputs: dict[str, bool]
