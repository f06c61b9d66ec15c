"""What a planner is told of a cluster."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import capacity
from schemas.errors import ClusterError
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.run.plan import ClusterSpec, WorkerFacts

GB = 10**9
HEAD = {"memory": 900.0 * GB}
NODES = [
    HEAD,
    {"GPU": 8.0, "CPU": 47.0, "memory": 800.0 * GB},
    {"GPU": 2.0, "CPU": 13.0, "memory": 100.0 * GB},
]
ON_GPU = WorkerFacts(
    node="n",
    device="cuda",
    device_name="NVIDIA H100",
    device_memory=80 * GB,
    dtype="bfloat16",
    training_dtype="bfloat16",
    gpu_reserved=True,
)


@pytest.mark.parametrize(
    ("device", "facts", "workers", "memory"),
    [
        ("cuda", {}, 10, 50 * GB),  # of the node that has least for each GPU
        ("auto", {"device": "cpu"}, 10, 50 * GB),  # torch sees none there
        ("cpu", {}, 4, 100 * GB),  # a node of 47 CPUs has room for 3 of 12, one of 13 for 1
    ],
)
def test_a_plan_counts_on_memory_where_workers_can_be(
    device: Any,
    facts: dict[str, str],
    workers: int,
    memory: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head has neither CPUs nor GPUs for them, and a worker is on one node."""
    alive = [{"Alive": True, "Resources": resources} for resources in NODES]
    lost = {"Alive": False, "Resources": {"GPU": 8.0, "CPU": 8.0, "memory": 1.0 * GB}}
    every = {name: sum(n.get(name, 0.0) for n in NODES) for name in ("GPU", "CPU", "memory")}
    task = SimpleNamespace(remote=lambda *_: "call")
    monkeypatch.setattr("ray.nodes", lambda: [*alive, lost])
    monkeypatch.setattr("ray.cluster_resources", lambda: every)
    monkeypatch.setattr(capacity, "probe", SimpleNamespace(options=lambda **_: task))
    found = ON_GPU.model_copy(update=facts)
    monkeypatch.setattr(capacity, "started", lambda *_: [found])
    spec: ClusterSpec = capacity.find_cluster(
        ClusterConfig(device=device), NumericsConfig(threads=12), "bfloat16"
    )
    assert (spec.workers, spec.host_memory) == (workers, memory)


def test_a_cluster_without_nodes_for_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head takes none, and a node of 8 CPUs has no room for a worker of 12 threads."""
    nodes = [HEAD, {"CPU": 8.0, "memory": 100.0 * GB}]
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ClusterError, match=r"no node with numerics.threads CPUs \(12\)"):
        capacity.find_cluster(ClusterConfig(), NumericsConfig(threads=12), "bfloat16")
