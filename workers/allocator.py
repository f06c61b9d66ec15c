"""The allocator's mind: the losses of all matrices, and the ranks that follow from them."""

from collections.abc import Sequence

from schemas.allocation import AllocationResult
from schemas.config import RunConfig
from schemas.model import MatrixSpec, whole
from workers.allocation import ALLOCATIONS, MatrixLoss
from workers.compression import read_spectrum
from workers.store import Store


class RankAllocator:
    """Holds the spectra of all matrices: numbers, no tensors of the model."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._losses: list[MatrixLoss] = []

    def gather(self, matrices: Sequence[MatrixSpec], identity: str) -> int:
        """Read the committed spectra of `matrices`; how many there are."""
        store = Store(self._config.run_folder)
        self._losses = [read_spectrum(store, identity, matrix)[0] for matrix in matrices]
        return len(self._losses)

    def allocate(self, ratio: float) -> AllocationResult:
        """Ranks at one ratio. Raises ConfigError where the ratio leaves nothing."""
        found = ALLOCATIONS[self._config.allocation](self._losses, ratio, self._config.factors)
        sizes = sum(loss.matrix.size for loss in self._losses)
        budget = whole((1 - ratio) * sizes)
        parameters = found.parameters(self._losses, self._config.factors)
        over = (f"the ranks take {parameters - budget:,} parameters more than the budget",)
        return AllocationResult(
            ratio=ratio,
            ranks=found.ranks,
            budget=budget,
            parameters=parameters,
            dense_parameters=sizes,
            nats=self._nats(found.ranks),
            fallbacks=found.fallbacks + (over if parameters > budget else ()),
        )

    def _nats(self, ranks: dict[str, int | None]) -> float | None:
        """Predicted increase of the mean token loss, where gradients were taken."""
        total = 0.0
        for loss in self._losses:
            if loss.nats is None:
                return None
            rank = ranks[loss.matrix.name]
            total += 0.0 if rank is None else loss.nats * float(loss.tail()[rank])
        return total
