"""The Ray actor that shares out ranks: a thin shell around `workers.allocator`."""

from collections.abc import Collection, Sequence

import ray
import torch

from schemas.model.spec import MatrixSpec, Neurons
from schemas.request.config import RunConfig
from schemas.run.identity import Identities
from schemas.run.ranks import AllocationResult
from workers.actors.metrics import count_traffic
from workers.allocator import RankAllocator
from workers.process.failures import guarded


@ray.remote(num_cpus=0)
class Allocator:
    """The one place where the losses of all matrices meet."""

    def __init__(self, config: RunConfig) -> None:
        count_traffic()
        torch.set_num_threads(1)
        self._allocator = RankAllocator(config)
        self.place = config.run_folder

    @guarded(repeatable=True)
    def gather(
        self,
        matrices: Sequence[MatrixSpec],
        ids: Identities,
        given_up: Collection[str],
        neurons: Sequence[Neurons],
    ) -> None:
        """Read the spectra of all matrices except those that have to stay dense, and what removing
        their neurons loses.
        """
        self._allocator.gather(matrices, ids, given_up, neurons)

    @guarded()
    def allocate(self, ratio: float) -> AllocationResult:
        """Return the ranks at one ratio."""
        return self._allocator.allocate(ratio)
