"""Nodes of a cluster that are lost in the middle of a run, with and without a spare one."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from schemas.request.config import RunConfig
from tests.integration.conftest import Reference
from tests.integration.processes import Start
from tests.integration.rays import small_ray
from tests.integration.support import KINDS, flags, item_attempts, until, weight_sums
from tests.items import local

STORE_BYTES = 80 * 1024**2
# A node that is lost is noticed after seconds; by default it takes most of a minute.
SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs."""
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "_system_config": SOON,
    }
    with small_ray():
        found = Cluster(initialize_head=True, head_node_args=head)
        yield found
        found.shutdown()  # type: ignore[no-untyped-call]


def test_a_run_outlives_its_nodes(
    cluster: Cluster, reference: Reference, config: RunConfig, start: Start
) -> None:
    """Each node has room for one worker. A spare one takes the place of the first that is lost;
    after the second there is only one left for the two that were asked for."""
    first, second = (add_node(cluster) for _ in range(2))
    command = start([*flags(config), "--set", f"cluster.address={cluster.address}"])
    until(lambda: command.said("load: "), "the first calibration is under way")
    add_node(cluster)
    lose_node(cluster, first)
    until(lambda: command.said("going on from "), "the driver goes on")
    until(lambda: command.log.count(" start: 1 cluster in ") >= 2, "new workers are there")
    assert "cluster.workers is 2: going on with 1" not in command.log
    until(lambda: bool(item_attempts(config.run_folder, *KINDS)), "something is committed")
    seen = item_attempts(config.run_folder, *KINDS)
    lose_node(cluster, second)
    assert command.wait() == 0, command.log
    assert "cluster.workers is 2: going on with 1" in command.log
    assert weight_sums(local(config.output)) == weight_sums(local(reference.output.path))
    now = item_attempts(config.run_folder, *KINDS)
    assert {key: now[key] for key in seen} == seen


def add_node(cluster: Cluster) -> Any:
    """A node with room for one worker."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def lose_node(cluster: Cluster, node: Any) -> None:
    """Its processes end without a word."""
    cluster.remove_node(node, allow_graceful=False)
