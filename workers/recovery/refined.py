"""Refined layers as items of the run directory, so that no worker refines one again."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import distribute_tensor

from workers.recovery.job import Job
from workers.recovery.updates import whole
from workers.storage.keys import TRAINING, refined_key
from workers.storage.store import Facts, Store
from workers.storage.tensorfile import entries


class RefinedLayers:
    """What the workers of a recovery have refined so far; it goes when the recovery ends.

    `seconds` is how long that took. All workers call the same methods.
    """

    def __init__(self, job: Job, trained: Mapping[str, Tensor]) -> None:
        self._job, self._trained = job, trained
        self._store = Store(job.config.run_folder / TRAINING)
        records = map(self._store.record, map(self._key, range(job.spec.layers)))
        found: list[Any] = [r.facts for r in itertools.takewhile(bool, records) if r]
        there = torch.tensor(len(found))
        dist.all_reduce(there, dist.ReduceOp.MIN)  # those that all workers see
        self._facts = found[: int(there)]
        self.seconds = float(self._facts[-1]["seconds"]) if self._facts else 0.0

    @torch.no_grad()
    def restore(self) -> list[float | None]:
        """Fill the parameters of these layers; return the error that was left of each."""
        for layer in range(len(self._facts)):
            for name, value in self._store.load(self._key(layer)).tensors.items():
                p: Any = self._trained[name]  # sharded, as all that is trained
                mine = distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
                p.to_local().copy_(mine.to_local())  # which may be on the host
        return [facts["left"] for facts in self._facts]

    def commit(self, layer: int, left: float | None, seconds: float) -> None:
        """Commit the parameters of a layer, in float32, by the first worker."""
        prefix = f"{self._job.spec.path}.{layer}."
        mine = (name for name in self._trained if name.startswith(prefix))
        tensors = {name: whole(self._trained[name]) for name in mine}
        if dist.get_rank() == 0:
            facts: Facts = {"left": left, "seconds": seconds}
            self._store.commit(self._key(layer), entries(tensors), facts)

    def _key(self, layer: int) -> str:
        return refined_key(self._job.identity, layer)
