"""What a run directory says of itself: run.json."""

from schemas.config import RunConfig, Schema
from schemas.identity import Ground, Identities
from schemas.moments import Pass
from schemas.plan import Plan


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
