"""What a run directory says of itself: run.json."""

from schemas.base import Schema
from schemas.request.config import RunConfig
from schemas.run.identity import Ground, Identities
from schemas.run.moments import Pass
from schemas.run.plan import Plan
from schemas.run.stages import StageName


class Owner(Schema):
    """A driver that took a run directory: its process, and when that started.

    `machine` tells one boot of one machine, or one container, from others; `started` is in clock
    ticks since the boot, so that a process is told from a later one of the same number.
    """

    machine: str
    host: str
    pid: int
    started: int
    since: str


class RunRecord(Schema):
    """The last command that was started here, and the items it has to commit.

    `ground` is what its numbers stand on; `outputs` are the folders of the checkpoints and their
    identities.
    """

    config: RunConfig
    ground: Ground
    ids: Identities
    plan: Plan
    taps: dict[Pass, int]
    matrices: int
    outputs: dict[str, str]


class StageStatus(Schema):
    """Items of one stage; `total` is None if it depends on a result still to come."""

    name: str
    done: int
    total: int | None
    bytes: int


class Activity(Schema):
    """progress.json: what the driver does, which it writes again every few seconds.

    `spent` are the seconds of every stage so far, `left` about how many are still to come, None
    where nothing is known to tell it by. `error` is what the run failed with.
    """

    stage: StageName
    done: int
    total: int
    unit: str
    tokens_per_second: float | None
    spent: dict[StageName, float]
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
