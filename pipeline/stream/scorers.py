"""Workers that stay from one streamed evaluation to the next."""

from pipeline.cluster.actors import start_workers
from pipeline.cluster.calls import Actor, stop
from pipeline.cluster.capacity import find_cluster
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.run.plan import ClusterSpec

NUMERICS = NumericsConfig()  # workers have as many threads as in a compression


class Scorers:
    """Workers for evaluations on a started Ray, from the first one until they are closed.

    They keep their CPUs or GPUs meanwhile, so nothing else may need these.
    """

    def __init__(self, where: ClusterConfig) -> None:
        self._where = where
        self._found: dict[str, ClusterSpec] = {}
        self._workers: list[Actor] = []
        self._memory = 0

    def cluster(self, stored: str) -> ClusterSpec:
        """Describe the cluster for weights of a dtype; once, for that may take a GPU."""
        if stored not in self._found:
            self.close()
            self._found[stored] = find_cluster(self._where, NUMERICS, stored)
        return self._found[stored]

    def hire(self, count: int, memory: int) -> list[Actor]:
        """Return `count` workers with so many bytes of host memory each; others are started if
        those that are there do not suffice.
        """
        if count > len(self._workers) or memory > self._memory:
            self.close()
            self._workers = start_workers(self._where, NUMERICS.threads, memory, count)
            self._memory = memory
        return self._workers[:count]

    def close(self) -> None:
        stop(self._workers)
        self._workers = []
