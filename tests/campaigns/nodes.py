"""A real Ray of several nodes on this machine, whose workers and nodes can be killed."""

import os
import random
import signal
from typing import Any

from tests.integration.processes import Process, descendants

_STORE_BYTES = 100 * 1024**2
# A node that is lost is noticed within two or three seconds.
_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
_ACTORS = ("ray::LayerShard", "ray::Allocator")


class Nodes:
    """A head without CPUs, to which drivers connect, and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._begin()

    def _begin(self) -> None:
        from ray.cluster_utils import Cluster  # what it reads of the environment is set by now

        self._cluster: Any = Cluster()
        self._cluster.add_node(
            num_cpus=0,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _system_config=_NOTICE,
        )
        self._families: dict[int, list[Process]] = {}
        self.headless = False
        self.fill()

    @property
    def address(self) -> str:
        """Where a driver finds it."""
        return str(self._cluster.address)

    @property
    def lacking(self) -> int:
        """Nodes that were killed and not added again."""
        return self._count - len(self._cluster.worker_nodes)

    def fill(self) -> None:
        """Add nodes until all are there again."""
        while self.lacking:
            self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)

    def look(self) -> None:
        """Note the processes of every node, so that a kill need not look for them first."""
        raylets = map(_raylet, self._cluster.worker_nodes)
        self._families = {raylet: descendants(raylet) for raylet in raylets}

    def kill_worker(self, draw: random.Random) -> bool:
        """SIGKILL to one worker process that was seen; False if there is none.

        It is an actor's; if there are none yet, that of a process that may become one.
        """
        seen = [process for family in self._families.values() for process in family]
        workers = [process for process in seen if _is_worker(process) and process.alive]
        actors = [process for process in workers if process.name.startswith(_ACTORS)]
        if workers:
            draw.choice(sorted(actors or workers)).kill()
        return bool(workers)

    def kill_node(self, draw: random.Random) -> None:
        """SIGKILL to a raylet and all that it was seen to have started."""
        node = draw.choice(sorted(self._cluster.worker_nodes, key=_raylet))
        raylet = _raylet(node)
        os.kill(raylet, signal.SIGKILL)
        for process in self._families.get(raylet, []):
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        """SIGKILL to every process of the head; what is on other nodes has to notice by itself."""
        for started in self._cluster.head_node.all_processes.values():
            for each in started:
                each.process.kill()
        self.headless = True

    def renew(self) -> None:
        """Another cluster in the place of one without a head."""
        self._cluster.shutdown()
        self._begin()

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


def _is_worker(process: Process) -> bool:
    """Whether it is one of those that run tasks and actors, whose names Ray sets."""
    return process.name.startswith("ray::") and "Agent" not in process.name


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
