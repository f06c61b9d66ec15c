"""A real Ray of several nodes on this machine, whose workers and nodes can be killed."""

import random
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
        from ray.cluster_utils import Cluster  # what it reads of the environment is set by now

        self._cluster: Any = Cluster()
        self._cluster.add_node(
            num_cpus=0,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _system_config=_NOTICE,
        )
        self._count = count
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

    def workers(self) -> list[Process]:
        """Processes of actors; where there are none yet, those that may become one."""
        found = [
            process
            for node in self._cluster.worker_nodes
            for process in descendants(_raylet(node))
            if "ray::" in process.name and "Agent" not in process.name
        ]
        actors = [process for process in found if process.name.startswith(_ACTORS)]
        return sorted(actors or found)

    def kill_worker(self, draw: random.Random) -> bool:
        """SIGKILL to one worker process; False where there is none."""
        if found := self.workers():
            draw.choice(found).kill()
        return bool(found)

    def kill_node(self, draw: random.Random) -> None:
        """SIGKILL to a raylet and all that it started."""
        node = draw.choice(sorted(self._cluster.worker_nodes, key=_raylet))
        family = descendants(_raylet(node))
        node.kill_raylet(check_alive=False)
        for process in family:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
