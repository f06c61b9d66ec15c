"""What a plan says of time: the operations and bytes of its stages, and what is assumed."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.footprint import Costs
from pipeline.plan.planner import make_plan
from schemas.request.config import RunConfig
from schemas.run.plan import ClusterSpec
from tests.unit.plan.conftest import RANKS, SHAPES, Base, planned
from workers.model.inspection import read_spec


def test_less_memory_takes_more_waves_and_more_time() -> None:
    plans = [planned("llama-3-70b", RANKS, gpu_memory=f"{size}GB") for size in (80, 32, 16, 11)]
    waves = [len(plan.waves) for plan in plans]
    seconds = [plan.seconds or 0.0 for plan in plans]
    assert waves[0] == 1
    assert waves == sorted(set(waves))
    assert seconds == sorted(set(seconds))
    assert plans[0].disk.boundaries < plans[-1].disk.boundaries
    loads = [plan.stages[1].read_bytes for plan in plans]
    assert loads[0] < loads[1] < 2 * loads[0]  # each wave again on the way back, but the last


def test_sums_of_replicas_go_through_storage() -> None:
    """12 bytes an element each, and are hashed as they are written and read, and added."""
    one, two = (
        {stage.name: stage for stage in planned("llama-3-8b", {"settings": [asked]}).stages}
        for asked in ("cluster.replicas=1", "cluster.replicas=2")
    )
    for name in ("calibrate forward", "calibrate backward"):
        moments = one[name].written_bytes
        assert two[name].written_bytes - moments == two[name].read_bytes == 2 * 3 * moments


def test_replicas_are_left_out_where_their_sums_take_longer_than_they_save() -> None:
    assert planned("llama-3-8b", gpus=40).replicas == 1


def test_more_gpus_are_faster() -> None:
    seconds = [planned("llama-3-70b", gpus=gpus).seconds or 0.0 for gpus in (2, 4, 8, 16, 32)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize(("method", "kinds"), [("svd-llm", 1), ("svd-llm-v2", 2)])
def test_the_svds_of_the_papers_are_bound_by_memory(method: str, kinds: int) -> None:
    """6 m n^2 + 20 n^3 of every W, and 9 n^3 of every X^T X, at 0.3 flop a byte of 3.35 TB/s."""
    spec = read_spec(str(SHAPES / "llama-3-70b.json"), None)
    shapes = [sorted((m.out_features, m.in_features)) for m in spec.matrices]
    svd = sum(6 * large * small**2 + 20 * small**3 for small, large in shapes)
    eigen = sum(9 * m.in_features**3 for m in spec.matrices)
    stages = {stage.name: stage for stage in planned("llama-3-70b", {"method": method}).stages}
    seconds = stages["factorise"].seconds or {}
    assert seconds["SVD"] == pytest.approx(svd / 8 / (0.3 * 3.35e12))
    solvers = {"SVD": svd, "eigensolver": eigen}
    found = {name: value for name, value in seconds.items() if name in solvers}
    assert len(found) == kinds
    for name, value in found.items():
        assert value == pytest.approx(solvers[name] / 8 / (0.3 * 3.35e12))
    assert 0 < (stages["truncate"].seconds or {})["float64"] < seconds["SVD"]


def test_bases_that_are_not_kept_take_their_svd_again() -> None:
    flags = {"method": "svd-llm", "settings": ["cluster.keep_bases=false"], "ratio": "0.2,0.4"}
    stages = {stage.name: stage.seconds or {} for stage in planned("llama-3-8b", flags).stages}
    assert stages["truncate"]["SVD"] == pytest.approx(2 * stages["factorise"]["SVD"])


def test_storage_is_one_for_the_whole_cluster() -> None:
    """More nodes read and write no faster; the network of a node bounds what it gets of it."""

    def disk(gpus: int, **flags: str) -> dict[str, float]:
        plan = planned("llama-3-70b", flags, gpus=gpus)
        return {stage.name: (stage.seconds or {}).get("disk", 0.0) for stage in plan.stages}

    one, two = disk(8), disk(16)
    assert two["factorise"] == pytest.approx(one["factorise"])
    assert two["truncate"] == pytest.approx(one["truncate"])
    twice = disk(8, storage_read="12GB", storage_write="6GB")
    assert twice["factorise"] == pytest.approx(one["factorise"] / 2)
    wire = {"storage_read": "1TB", "storage_write": "1TB"}
    assert disk(16, **wire)["truncate"] == pytest.approx(disk(8, **wire)["truncate"] / 2)
    size = planned("llama-3-70b").stages[0].read_bytes
    assert disk(16, **wire)["inspect"] == pytest.approx(size / 25e9)  # one node


def test_what_is_assumed_is_said() -> None:
    given = planned("llama-3-8b", {"storage_read": "12GB", "storage_write": "1.5GB"})
    said = " ".join(given.assumed)
    assert "12 GB/s to read (--storage-read) and 1.5 GB/s to write (--storage-write)" in said
    assert "host memory" not in said
    described = planned("llama-3-8b", host_memory=None, gpu_type=None)
    assert described.assumed == ("128 GB of host memory a GPU (--host-memory)",)
    assert described.cluster.host_memory == 128 * 10**9
    assert planned("llama-3-8b", host_memory=None, gpus_per_node=4).cluster.host_memory == 128e9


@pytest.mark.parametrize(
    ("name", "ratio", "loaded"),
    [
        pytest.param("llama-3-405b", 0.2, 0.03, marks=pytest.mark.slow),
        ("llama-3-70b", 0.2, 0.07),
        ("llama-3-8b", 0.6, 1.0),
    ],
)
def test_verify_reads_a_large_model_once_and_two_layers(
    name: str, ratio: float, loaded: float
) -> None:
    """`loaded` is the part of it that is read again; nothing but a very small model is written."""
    plan = planned(name, {"ratio": ratio})
    [verify] = [stage for stage in plan.stages if stage.name == "verify"]
    assert verify.read_bytes / plan.disk.outputs == pytest.approx(1 + loaded, abs=0.01)
    assert verify.written_bytes == 0


def test_the_base_is_scored_once_for_all_ratios() -> None:
    """And its last hidden states are kept: 32 windows of 2,048 tokens, 8,192 wide, in bfloat16."""
    kept = 32 * 2048 * 8192 * 2
    plans = [planned("llama-3-70b", RANKS | {"ratio": ratio}) for ratio in ("0.2", "0.2,0.4")]
    assert [plan.disk.boundaries for plan in plans] == [kept, kept]
    one, two = ({s.name: s for s in plan.stages}["evaluate"] for plan in plans)
    assert one.written_bytes == two.written_bytes == kept
    head = 2 * 128_256 * 8192
    second = plans[1].disk.outputs - plans[0].disk.outputs
    assert two.read_bytes - one.read_bytes == pytest.approx(second + head + kept, rel=1e-3)


def test_stages_add_up_and_the_bottleneck_is_one_of_them() -> None:
    plan = planned("llama-3-70b")
    assert plan.seconds == pytest.approx(sum(stage.total or 0.0 for stage in plan.stages))
    longest = max(plan.stages, key=lambda stage: stage.total or 0.0)
    assert plan.bottleneck == f"{longest.name}: {longest.limit}"


def test_flops_of_a_70b_are_those_of_the_design() -> None:
    """By hand: forward 7.2e16, moments 2.3e16 at 524,288 tokens, 86 GB of them."""
    plan = planned("llama-3-70b", RANKS)
    flops = {stage.name: stage.flops for stage in plan.stages}
    assert flops["calibrate forward"] == pytest.approx(7.2e16 + 2.3e16, rel=0.01)
    assert plan.memory.forward_moments * 8 == pytest.approx(86e9, rel=0.01)
    assert plan.memory.backward_moments * 8 == pytest.approx(108e9, rel=0.01)


def test_neurons_take_their_moments_and_an_order() -> None:
    """By hand: 80 moments of 28,672 neurons, in float32 263 GB, at 524,288 tokens 6.9e16 flops."""
    ranks, both = planned("llama-3-70b", RANKS), planned("llama-3-70b")
    assert both.disk.moments - ranks.disk.moments == 80 * 4 * 28_672**2
    before, after = ({s.name: s.flops for s in plan.stages} for plan in (ranks, both))
    more = after["calibrate forward"] - before["calibrate forward"]
    assert more == pytest.approx(6.9e16, rel=0.01)
    order = 80 * (8 / 3 * 28_672**3 + 2 * 8192 * 28_672**2)
    assert after["factorise"] - before["factorise"] == pytest.approx(order, rel=1e-6)
    assert both.memory.factorise == 8 * (4 * 28_672**2 + 3 * 8192 * 28_672)


def test_neurons_alone_take_no_more_than_their_orders() -> None:
    """By hand: as above, with gradients of 8,192 for each MLP, and no basis."""
    both, alone = planned("llama-3-70b"), planned("llama-3-70b", {"method": "neurons"})
    assert alone.disk.moments == 80 * 4 * (28_672**2 + 8192**2)
    assert alone.disk.bases == 0
    flops = {stage.name: stage.flops for stage in alone.stages}
    order = 80 * (8 / 3 * 28_672**3 + 2 * 8192 * 28_672**2)
    assert flops["factorise"] == pytest.approx(order, rel=1e-6)
    assert flops["calibrate forward"] == pytest.approx(7.2e16 + 6.9e16, rel=0.01)
    assert alone.seconds is not None
    assert both.seconds is not None
    assert alone.seconds < both.seconds


def test_neurons_that_a_device_has_no_room_to_order_stay() -> None:
    small, ranks = (planned("llama-3-70b", f, gpu_memory="32GB") for f in ({}, RANKS))
    assert small.stages == ranks.stages
    assert "no room to order the neurons of 80 MLPs: they stay" in small.assumed
    assert not any("neurons" in said for said in ranks.assumed)
    assert planned("llama-3-405b").stages == planned("llama-3-405b", RANKS).stages
    assert planned("llama-3-8b").stages != planned("llama-3-8b", RANKS).stages


def test_an_unknown_device_has_bytes_and_no_times() -> None:
    known, unknown = planned("llama-3-8b"), planned("llama-3-8b", gpu_type="new")
    assert (unknown.seconds, unknown.bottleneck) == (None, None)
    assert {stage.seconds for stage in unknown.stages} == {None}
    assert unknown.memory == known.memory
    assert unknown.shards == known.shards


def test_the_names_of_torch_find_their_row() -> None:
    config = RunConfig(model="m", output=Path("out"), ratio=(0.2,))
    spec = read_spec(str(SHAPES / "llama-3-8b.json"), None)
    cluster = ClusterSpec(
        workers=8,
        device="cuda",
        device_name="NVIDIA H100 80GB HBM3",
        device_memory=80 * 10**9,
        host_memory=10**12 // 8,
        dtype="bfloat16",
    )
    assert make_plan(config, spec, cluster).seconds == planned("llama-3-8b").seconds


def test_what_neurons_alone_leave_dense_is_not_trained(base: Base) -> None:
    asked: dict[str, Any] = {"recovery": {"enabled": True}}
    both, alone = (
        Costs(base.config(method=method, **asked), base.spec, "float32")
        for method in ("two-sided", "neurons")
    )
    assert both.trained(0.2) == both.stays(0.2) == alone.stays(0.2)
    attention = sum(matrix.size for matrix in base.spec.matrices if "attn" in matrix.name)
    assert alone.trained(0.2) == alone.stays(0.2) - attention
