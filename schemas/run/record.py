"""The files in which a run directory describes itself, and its status."""

from schemas.base import Schema
from schemas.request.config import RunConfig
from schemas.run.identity import Ground, Identities
from schemas.run.moments import Pass
from schemas.run.plan import Plan
from schemas.run.stages import StageName
from schemas.run.texts import TextFacts


class Owner(Schema):
    """A driver that took a run directory: its process, and when that started.

    `machine` identifies one boot of one machine, or one container; `started` is in clock ticks
    since the boot, to tell a process from a later one with the same number. `attempt` is of this
    entry alone.
    """

    machine: str
    host: str
    pid: int
    started: int
    since: str
    attempt: str = ""


class RunRecord(Schema):
    """run.json: the last command started here, and the items that it has to commit.

    `ground` is what its numbers depend on, `texts` how it has read its texts; `matrices` get a
    basis, and the neurons of `mlps` an order; `outputs` are the folders of the checkpoints and
    their identities, empty if a budget is to find the ratio.
    """

    config: RunConfig
    ground: Ground
    ids: Identities
    plan: Plan
    taps: dict[Pass, int]
    matrices: int
    mlps: int = 0
    outputs: dict[str, str]
    texts: tuple[TextFacts, ...] = ()


class StageStatus(Schema):
    """Items of one stage; `total` is None if it depends on a result still to come."""

    name: str
    done: int
    total: int | None
    bytes: int


class Activity(Schema):
    """progress.json: what the driver does, rewritten every few seconds.

    `spent` are the seconds of every stage so far, `left` an estimate of the seconds to come, None
    if there is nothing to estimate from. `error` is why the run failed.
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
