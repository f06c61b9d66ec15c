"""Layer shards and costs from shapes alone."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from pipeline.plan import make_plan, plan_checkpoint
from schemas.config import RunConfig
from schemas.model import ModelSpec
from schemas.moments import taps
from schemas.plan import ClusterSpec, Plan
from tests.models import tiny_model
from workers.checkpoint import inspect


class Base(NamedTuple):
    folder: Path
    spec: ModelSpec

    def config(self, **fields: Any) -> RunConfig:
        given = {"model": str(self.folder), "output": "out", "ratio": [0.2, 0.5]} | fields
        return RunConfig.model_validate(given)

    def plan(self, workers: int = 2, **fields: Any) -> Plan:
        cluster = ClusterSpec(
            workers=workers,
            device="cpu",
            device_name="",
            device_memory=2**40,
            host_memory=2**40,
            dtype="float32",
        )
        return make_plan(self.config(**fields), self.spec, cluster)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("base"), num_hidden_layers=7)
    return Base(folder, inspect(folder))


@pytest.mark.parametrize("workers", range(1, 8))
def test_shards_are_contiguous_and_complete(base: Base, workers: int) -> None:
    shards = base.plan(workers).shards
    assert len(shards) == workers
    assert [layer for shard in shards for layer in shard.range] == list(range(7))


@pytest.mark.parametrize("workers", range(1, 8))
def test_shards_differ_by_one_layer_at_most(base: Base, workers: int) -> None:
    sizes = [len(shard.range) for shard in base.plan(workers).shards]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_parameters_are_those_of_the_files(base: Base) -> None:
    tensors = load_file(base.folder / "model.safetensors")
    linear = [t.numel() for name, t in tensors.items() if name.endswith("_proj.weight")]
    plan = base.plan()
    assert plan.total_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert plan.targeted_parameters == sum(linear)


def test_a_ratio_is_of_the_targeted_parameters(base: Base) -> None:
    plan = base.plan()
    for one, ratio in zip(plan.ratios, (0.2, 0.5), strict=True):
        removed = plan.targeted_parameters * ratio
        assert one.ratio == ratio
        assert one.targeted_parameters == pytest.approx(plan.targeted_parameters - removed, abs=1)
        assert one.total_parameters == pytest.approx(plan.total_parameters - removed, abs=1)


@pytest.mark.parametrize("method", ["two-sided", "svd-llm", "svd-llm-v2"])
def test_moments_on_disk_are_those_of_the_taps(base: Base, method: str) -> None:
    config = base.config(method=method)
    found = taps(base.spec.matrices, config.truncation, config.needs_gradients)
    moments = sum(tap.size**2 * 4 for tap in found if tap.moment)
    assert base.plan(method=method).run_disk_bytes > moments
    assert base.plan(1, method=method).moment_bytes == moments


def test_more_workers_need_less_memory_each(base: Base) -> None:
    one, many = base.plan(1), base.plan(7)
    assert many.weight_bytes < one.weight_bytes
    assert many.moment_bytes == pytest.approx(one.moment_bytes / 7)


def test_outputs_take_less_than_the_base_each(base: Base) -> None:
    plan = base.plan()
    whole = (base.folder / "model.safetensors").stat().st_size
    assert 1.0 * whole < plan.output_disk_bytes < 2 * whole  # at 0.2 and 0.5
    assert plan.output_disk_bytes == pytest.approx(
        sum(4 * ratio.total_parameters for ratio in plan.ratios), abs=8
    )


@pytest.mark.parametrize(("asked", "workers"), [(3, 3), (20, 7)])
def test_no_shard_is_without_a_layer(base: Base, asked: int, workers: int) -> None:
    plan = plan_checkpoint(base.config(cluster={"workers": asked}))
    assert len(plan.shards) == workers


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("two-sided", {"q": 32, "k": 16, "gate": 32, "down": 32}),
        ("svd-llm", {"q": 32, "k": 32, "gate": 32, "down": 80}),
    ],
)
def test_a_moment_is_no_larger_than_the_method_needs(
    base: Base, method: str, sizes: dict[str, int]
) -> None:
    """The smaller side of W, but the papers' methods are defined on the whole X^T X."""
    config = base.config(method=method)
    matrices = {m.path.rpartition(".")[2].removesuffix("_proj"): m for m in base.spec.matrices}
    found = {
        name: max(
            tap.size for tap in taps((matrices[name],), config.truncation, config.needs_gradients)
        )
        for name in sizes
    }
    assert found == sizes
