"""What a run directory says of itself: run.json."""

from schemas.config import RunConfig, Schema
from schemas.identity import Identities
from schemas.moments import Pass
from schemas.plan import Plan


class RunRecord(Schema):
    """The last command that was started here, and the items it has to commit.

    `outputs` are the folders of the checkpoints and their identities.
    """

    config: RunConfig
    ids: Identities
    plan: Plan
    taps: dict[Pass, int]
    matrices: int
    outputs: dict[str, str]
