"""The Ray actor that shares out ranks: `workers.allocator` in a process of its own."""

import ray
import torch

from schemas.request.config import RunConfig
from workers.actors.metrics import count_traffic
from workers.allocator import RankAllocator
from workers.process.failures import guarded


@ray.remote(num_cpus=0)
class Allocator(RankAllocator):
    """The one place where the losses of all matrices meet."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        count_traffic()
        torch.set_num_threads(1)
        self.place = config.run_folder

    gather = guarded(repeatable=True)(RankAllocator.gather)
    allocate = guarded()(RankAllocator.allocate)
