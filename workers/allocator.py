"""The allocator's logic: the losses of all matrices, and the ranks that follow from them."""

from collections import Counter
from collections.abc import Collection, Sequence

from schemas.errors import ConfigError, RunError
from schemas.model.spec import MatrixSpec, Neurons, whole
from schemas.request.config import RunConfig
from schemas.run.identity import Identities
from schemas.run.ranks import AllocationResult
from schemas.run.targets import budgets
from workers.allocation import MatrixLoss, NeuronsLoss, Ranks, allocate
from workers.allocation.budget import unranked
from workers.storage.places import at_once
from workers.storage.spectra import read_neurons, read_spectrum
from workers.storage.store import Store


class RankAllocator:
    """Holds the spectra of all matrices, and the losses of their neurons: numbers, no tensors of
    the model.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._losses: list[MatrixLoss] = []
        self._neurons: list[NeuronsLoss] = []
        self._dense: list[MatrixSpec] = []
        self._whole: tuple[str, ...] = ()

    def gather(
        self,
        matrices: Sequence[MatrixSpec],
        ids: Identities,
        given_up: Collection[str] = (),
        neurons: Sequence[Neurons] = (),
    ) -> None:
        """Read the committed spectra of `matrices`, if ranks may be lowered, and what removing
        their `neurons` loses.

        Matrices that were `given_up` have to stay dense, and may have no spectrum.
        """
        store = Store(self._config.run_folder)
        self._dense = [matrix for matrix in matrices if matrix.name in given_up]
        cut = [matrix for matrix in matrices if matrix.name not in given_up]
        multiple = self._config.allocation.multiple

        def read(matrix: MatrixSpec) -> MatrixLoss:
            if not self._config.lowers_ranks:
                return unranked(matrix)
            return read_spectrum(store, ids, matrix, multiple)[0]

        self._losses = at_once(read, cut)
        names = {matrix.name for matrix in cut}
        self._neurons = at_once(
            lambda n: read_neurons(store, ids, n, multiple), [n for n in neurons if n.within(names)]
        )
        left = len(neurons) - len(self._neurons)
        said = f"{left} of {len(neurons)} MLPs keep all their neurons, and not the width of others"
        self._whole = (said,) if left and self._config.one_width else ()

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
        pruned = frozenset(name for part in parts for name in part.pruned)
        cut = [loss for loss in self._losses if loss.matrix.name not in pruned]
        notes = [note for part in parts for note in part.fallbacks]
        return AllocationResult(
            ratio=ratio,
            ranks=ranks,
            pruned=pruned,
            budget=sum(part.budget for part in parts),
            parameters=sum(part.parameters for part in parts),
            dense_parameters=sum(part.dense_parameters for part in parts),
            nats=None if None in nats else sum(value or 0.0 for value in nats),
            fallbacks=(*notes, *_off_grid(cut, ranks), *self._whole),
        )

    def _allocate(self, ratio: float, names: Collection[str]) -> AllocationResult:
        kept = [matrix for matrix in self._dense if matrix.name in names]
        losses = [loss for loss in self._losses if loss.matrix.name in names]
        dense = sum(matrix.size for matrix in kept)
        rest = sum(loss.matrix.size for loss in losses)
        sizes = dense + rest
        budget = whole((1 - ratio) * sizes)
        share = ratio if not dense else 1 - (budget - dense) / max(rest, 1)
        config = self._config
        neurons = [loss for loss in self._neurons if loss.neurons.within(names)]
        too_much = RunError(
            f"ratio {ratio}: what could not be cut ({len(kept)} matrices) has "
            f"{dense:,} parameters, and {budget:,} may stay; lower the ratio, or start the "
            "same command again once they can be cut"
        )
        if share >= 1 and (losses or dense > budget):
            raise too_much
        try:
            found = allocate(config.allocation, losses, share, config.factors, neurons)
        except ConfigError as error:
            raise (too_much if kept else error) from error
        parameters = dense + found.parameters(losses, config.factors)
        over = (f"the ranks take {parameters - budget:,} parameters more than the budget",)
        return AllocationResult(
            ratio=ratio,
            ranks=found.ranks | {matrix.name: None for matrix in kept},
            pruned=found.pruned,
            budget=budget,
            parameters=parameters,
            dense_parameters=sizes,
            nats=_nats(losses, neurons, found),
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


def _nats(
    losses: Sequence[MatrixLoss], neurons: Sequence[NeuronsLoss], found: Ranks
) -> float | None:
    """Return the predicted increase of the mean token loss, if gradients were taken."""
    total = 0.0
    for loss in losses:
        if loss.nats is None:
            return None
        rank = found.ranks[loss.matrix.name]
        if rank is not None and loss.matrix.name not in found.pruned:
            total += loss.nats * float(loss.tail()[rank])
    for group in neurons:
        kept = found.ranks[group.neurons.name]
        if kept is not None and group.neurons.name in found.pruned:
            total += group.nats * float(group.losses[group.neurons.count - kept - 1])
    return total
