"""The allocator's logic: the losses of all matrices, and the ranks that follow from them."""

from collections import Counter
from collections.abc import Collection, Sequence

from schemas.errors import RunError
from schemas.model.spec import MatrixSpec, whole
from schemas.request.config import RunConfig
from schemas.run.ranks import AllocationResult
from schemas.run.targets import budgets
from workers.allocation import MatrixLoss, allocate
from workers.storage.places import at_once
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
    ) -> None:
        """Read the committed spectra of `matrices`.

        Matrices that were `given_up` have to stay dense, and may have no spectrum.
        """
        store = Store(self._config.run_folder)
        self._dense = [matrix for matrix in matrices if matrix.name in given_up]
        cut = [matrix for matrix in matrices if matrix.name not in given_up]
        multiple = self._config.allocation.rank_multiple

        def read(matrix: MatrixSpec) -> MatrixLoss:
            return read_spectrum(store, identity, matrix, multiple)[0]

        self._losses = at_once(read, cut)

    def allocate(self, ratio: float) -> AllocationResult:
        """Return the ranks of all matrices at a ratio; if some stay dense, others are cut more.

        Matrices with a ratio of their own (`ratio_by`) share a budget of their own. Raises
        ConfigError if the lowest ranks are over the budget, RunError if the dense ones are.
        """
        everything = [*(loss.matrix for loss in self._losses), *self._dense]
        parts = [
            self._allocate(own, {matrix.name for matrix in group})
            for own, group in budgets(self._config, everything, ratio)
        ]
        nats = [part.nats for part in parts]
        ranks = {name: rank for part in parts for name, rank in part.ranks.items()}
        notes = [note for part in parts for note in part.fallbacks]
        return AllocationResult(
            ratio=ratio,
            ranks=ranks,
            budget=sum(part.budget for part in parts),
            parameters=sum(part.parameters for part in parts),
            dense_parameters=sum(part.dense_parameters for part in parts),
            nats=None if None in nats else sum(value or 0.0 for value in nats),
            fallbacks=(*notes, *_off_grid(self._losses, ranks)),
        )

    def _allocate(self, ratio: float, names: Collection[str]) -> AllocationResult:
        kept = [matrix for matrix in self._dense if matrix.name in names]
        losses = [loss for loss in self._losses if loss.matrix.name in names]
        dense = sum(matrix.size for matrix in kept)
        rest = sum(loss.matrix.size for loss in losses)
        sizes = dense + rest
        budget = whole((1 - ratio) * sizes)
        share = ratio if not dense else 1 - (budget - dense) / max(rest, 1)
        if share >= 1:
            raise RunError(
                f"ratio {ratio}: what could not be cut ({len(kept)} matrices) has "
                f"{dense:,} parameters, and {budget:,} may stay; lower the ratio, or start the "
                "same command again once they can be cut"
            )
        config = self._config
        found = allocate(config.allocation, losses, share, config.factors)
        parameters = dense + found.parameters(losses, config.factors)
        over = (f"the ranks take {parameters - budget:,} parameters more than the budget",)
        return AllocationResult(
            ratio=ratio,
            ranks=found.ranks | {matrix.name: None for matrix in kept},
            budget=budget,
            parameters=parameters,
            dense_parameters=sizes,
            nats=_nats(losses, found.ranks),
            fallbacks=found.fallbacks + (over if parameters > budget else ()),
        )


def _off_grid(losses: Sequence[MatrixLoss], ranks: dict[str, int | None]) -> list[str]:
    """Describe the ranks that are not multiples of what was asked for, once for each shape."""
    found = Counter(
        (loss.multiple, loss.matrix.out_features, loss.matrix.in_features, loss.grid)
        for loss in losses
        if (rank := ranks[loss.matrix.name]) is not None and rank % loss.multiple
    )
    return [
        f"{times} of {rows} x {columns}, which have few multiples of {multiple}: their ranks are "
        f"multiples of {grid}"
        for (multiple, rows, columns, grid), times in found.items()
    ]


def _nats(losses: Sequence[MatrixLoss], ranks: dict[str, int | None]) -> float | None:
    """Return the predicted increase of the mean token loss, if gradients were taken."""
    total = 0.0
    for loss in losses:
        if loss.nats is None:
            return None
        rank = ranks[loss.matrix.name]
        total += 0.0 if rank is None else loss.nats * float(loss.tail()[rank])
    return total
