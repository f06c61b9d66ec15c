"""The allocator's logic: the losses of all matrices, and the ranks that follow from them."""

from collections.abc import Collection, Sequence

from schemas.errors import RunError
from schemas.model.spec import MatrixSpec, whole
from schemas.request.config import RunConfig
from schemas.run.ranks import AllocationResult
from workers.allocation import MatrixLoss, allocate
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store


class RankAllocator:
    """Holds the spectra of all matrices: numbers, no tensors of the model."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._losses: list[MatrixLoss] = []
        self._dense: list[MatrixSpec] = []

    def gather(
        self, matrices: Sequence[MatrixSpec], identity: str, given_up: Collection[str] = ()
    ) -> int:
        """Read the committed spectra of `matrices`; return their number.

        Matrices that were `given_up` have to stay dense, and may have no spectrum.
        """
        store = Store(self._config.run_folder)
        self._dense = [matrix for matrix in matrices if matrix.name in given_up]
        cut = [matrix for matrix in matrices if matrix.name not in given_up]
        self._losses = [read_spectrum(store, identity, matrix)[0] for matrix in cut]
        return len(self._losses)

    def allocate(self, ratio: float) -> AllocationResult:
        """Return the ranks of all matrices at a ratio; if some stay dense, others are cut more.

        Raises ConfigError if rank 1 everywhere is over the budget, RunError if the dense ones are.
        """
        dense = sum(matrix.size for matrix in self._dense)
        rest = sum(loss.matrix.size for loss in self._losses)
        sizes = dense + rest
        budget = whole((1 - ratio) * sizes)
        share = ratio if not dense else 1 - (budget - dense) / max(rest, 1)
        if share >= 1:
            raise RunError(
                f"ratio {ratio}: what could not be cut ({len(self._dense)} matrices) has "
                f"{dense:,} parameters, and {budget:,} may stay; lower the ratio, or start the "
                "same command again once they can be cut"
            )
        config = self._config
        found = allocate(config.allocation, self._losses, share, config.factors)
        parameters = dense + found.parameters(self._losses, config.factors)
        over = (f"the ranks take {parameters - budget:,} parameters more than the budget",)
        return AllocationResult(
            ratio=ratio,
            ranks=found.ranks | {matrix.name: None for matrix in self._dense},
            budget=budget,
            parameters=parameters,
            dense_parameters=sizes,
            nats=self._nats(found.ranks),
            fallbacks=found.fallbacks + (over if parameters > budget else ()),
        )

    def _nats(self, ranks: dict[str, int | None]) -> float | None:
        """Return the predicted increase of the mean token loss, if gradients were taken."""
        total = 0.0
        for loss in self._losses:
            if loss.nats is None:
                return None
            rank = ranks[loss.matrix.name]
            total += 0.0 if rank is None else loss.nats * float(loss.tail()[rank])
        return total
