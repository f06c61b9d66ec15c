"""What a recovery is asked to do."""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.result.output import MatrixResult
from schemas.result.recovery import RecoveryResult
from schemas.run.identity import Identities
from schemas.run.plan import RecoveryMemory
from workers.storage.keys import recovered_key
from workers.storage.store import Store


class Job(NamedTuple):
    """One recovery: which matrices at which ranks, and under which identity.

    `ids` are the identities of the run, `taught` that of the base's last hidden
    states on the text; `dtype` is what layers compute in; `memory` tells where parameters are to
    be; `rows` has the result of every matrix by its name. `own_norms` tells whether norms are
    trained, or were in what is adopted: then they are not the base's. `on_gpu` tells where it is
    trained; a cluster may have GPUs that its torch cannot use.
    """

    config: RunConfig
    spec: ModelSpec
    identity: str
    ids: Identities
    taught: str
    dtype: str
    memory: RecoveryMemory | None
    ranks: Mapping[str, int | None]
    rows: Mapping[str, MatrixResult]
    own_norms: bool = False
    on_gpu: bool = False

    @property
    def offload(self) -> bool:
        """Whether parameters and optimiser are in host memory."""
        return self.memory is not None and self.memory.offload

    @property
    def least_workers(self) -> int:
        """With how many workers it may go on if others are lost."""
        return 1 if self.memory is None else self.memory.least_workers

    @property
    def parameters(self) -> int:
        """How many parameters of factors are trained; or of updates, at most."""
        rows, rank = self.rows.values(), self.config.recovery.rank_of_updates
        if rank is None:
            return sum(row.parameters for row in rows if row.rank)
        return sum(rank * (sum(row.shape) + 2 * row.rank) for row in rows if row.rank)


def recovery_of(store: Store, identity: str) -> RecoveryResult | None:
    """Return what the recovery of an output found; None if it has not ended, or never began."""
    record = store.record(recovered_key(identity, None))
    return None if record is None else RecoveryResult.model_validate(record.facts)
