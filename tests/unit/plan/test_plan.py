"""Layer shards, waves, replicas and memory from shapes alone."""

import pytest
from safetensors.torch import load_file

from pipeline.plan.flops import rank_at
from pipeline.plan.footprint import Costs
from pipeline.plan.machines import Machines, share
from pipeline.plan.planner import plan_checkpoint
from schemas.errors import ConfigError
from schemas.model.spec import Factors, factor_parameters
from schemas.run.moments import taps
from schemas.run.plan import LayerRange, Plan
from schemas.run.targets import select
from tests import spectra
from tests.unit.plan.conftest import RANKS, SHAPES, Base, planned

NAMES = sorted(path.stem for path in SHAPES.glob("*.json"))


def layers(plan: Plan) -> list[int]:
    return [layer for shard in plan.shards for layer in shard.range]


@pytest.mark.parametrize("workers", range(1, 8))
def test_shards_are_contiguous_complete_and_even(base: Base, workers: int) -> None:
    plan = base.plan(workers)
    sizes = [len(shard.range) for shard in plan.shards]
    # A fifth and a sixth worker lengthen the chain, but leave it a shard of two layers.
    assert len(plan.shards) == plan.workers == {5: 4, 6: 4}.get(workers, workers)
    assert layers(plan) == list(range(7))
    assert max(sizes) - min(sizes) <= 1


def test_ranks_are_multiples_of_64_on_gpus_and_of_32_on_a_cpu(base: Base) -> None:
    assert planned("llama-3-8b").rank_multiple == 64
    assert planned("llama-3-8b", {"rank_multiple": 16}).rank_multiple == 16
    assert plan_checkpoint(base.config(), Machines()).rank_multiple == 32
    with pytest.raises(
        ConfigError, match=r"ratio 0\.98: the lowest rank \(--rank-multiple 64\) in"
    ):
        planned("llama-3-8b", {"ratio": 0.98})
    assert planned("llama-3-8b", {"ratio": 0.98, "rank_multiple": 1}).rank_multiple == 1


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
def test_moments_are_those_of_the_taps(base: Base, method: str) -> None:
    config, plan = base.config(method=method), base.plan(1, method=method)
    found = taps(base.spec.matrices, config.truncation, config.needs_gradients)
    sizes = {"forward": 0, "backward": 0}
    for tap in found:
        sizes[tap.direction] += 4 * tap.elements if tap.moment else 0
    assert plan.memory.forward_moments == sizes["forward"]
    assert plan.memory.backward_moments == sizes["backward"]
    assert plan.memory.sums == 3 * max(sizes.values())
    assert plan.disk.moments == sum(sizes.values())


def test_more_workers_need_less_memory_each(base: Base) -> None:
    one, many = base.plan(1).memory, base.plan(7).memory
    assert many.weights < one.weights
    assert many.forward_moments == pytest.approx(one.forward_moments / 7)


def test_outputs_take_less_than_the_base_each(base: Base) -> None:
    plan = base.plan()
    whole = (base.folder / "model.safetensors").stat().st_size
    assert 1.0 * whole < plan.disk.outputs < 2 * whole  # at 0.2 and 0.5
    assert plan.disk.outputs == pytest.approx(
        sum(4 * ratio.total_parameters for ratio in plan.ratios), abs=8
    )


def test_of_the_trials_of_a_budget_only_factors_add_up(base: Base) -> None:
    one = base.plan(ratio=(0.2,)).disk
    trials = base.plan(ratio=(), budget={"kl": 0.1}).disk
    assert (trials.factors, trials.outputs) == (6 * one.factors, one.outputs)
    assert trials.run_directory - one.run_directory == 5 * one.factors


@pytest.mark.parametrize(("asked", "workers"), [(3, 3), (20, 7)])
def test_no_shard_is_without_a_layer(
    base: Base, asked: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.plan.machines.available_bytes", lambda: 64 * 10**9)
    plan = plan_checkpoint(base.config(cluster={"workers": asked}), Machines())
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
    """The smaller side of W, but the papers' methods are defined on the whole X^T X. (A diagonal is
    of the input.)
    """
    config = base.config(method=method, allocation={"method": "loss-aware-ranks"})
    chosen = select(config, base.spec).matrices
    matrices = {m.path.rpartition(".")[2].removesuffix("_proj"): m for m in chosen}
    found = {
        name: max(
            tap.shape[0]
            for tap in taps((matrices[name],), config.truncation, config.needs_gradients)
        )
        for name in sizes
    }
    assert found == sizes


def test_shard_layers_caps_a_shard(base: Base) -> None:
    plan = base.plan(2, cluster={"shard_layers": 2})
    assert max(len(shard.range) for shard in plan.shards) == 2
    assert [len(wave) for wave in plan.waves] == [2, 2]
    assert layers(plan) == list(range(7))


def test_replicas_are_one_on_the_cpu_unless_asked_for(base: Base) -> None:
    assert base.plan(6).replicas == 1
    plan = base.plan(6, cluster={"replicas": 2})
    assert (plan.replicas, plan.chain) == (2, 3)
    with pytest.raises(ConfigError, match="ask for 2 at most"):
        base.plan(2, cluster={"replicas": 3})


def test_the_workspace_of_a_factorisation_is_no_less_than_measured() -> None:
    """Of a matrix with a side of 8,192, beside 2.2 GB of weights (docs/plan-70b.md)."""
    measured = 7.7e9 - 2.2e9
    assert measured < planned("llama-3-70b", RANKS).memory.factorise < 1.1 * measured


@pytest.mark.parametrize(
    ("method", "shape", "measured"),
    [
        ("two-sided", (1024, 3584), 162),
        ("two-sided", (3584, 1024), 173),
        ("two-sided", (32768, 256), 233),
        ("two-sided", (8192, 1024), 255),
        ("two-sided", (16384, 2048), 675),
        ("svd-llm", (3072, 768), 117),
        ("svd-llm", (768, 3072), 246),
        ("svd-llm", (1024, 1024), 87),
        ("svd-llm", (16384, 256), 172),
        ("svd-llm-v2", (3072, 768), 119),
        ("svd-llm-v2", (768, 3072), 403),
        ("svd-llm-v2", (1024, 1024), 90),
        ("svd", (3072, 768), 103),
        ("svd", (768, 3072), 98),
        ("svd", (8192, 1024), 302),
    ],
)
def test_the_workspace_of_a_matrix_is_no_less_than_measured(
    base: Base, method: str, shape: tuple[int, int], measured: int
) -> None:
    """Of its basis and of its truncation at rank 0.7: peaks of resident memory on a CPU, in MB."""
    spec = base.spec.model_copy(update={"matrices": (spectra.matrix(0, *shape),)})
    config = base.config(method=method)
    shards = (LayerRange(start=0, stop=spec.layers),)
    said = Costs(config, spec, "float32").memory(shards, 1).factorise
    assert measured * 10**6 < said < 1.5 * measured * 10**6


def test_matrices_are_factorised_while_the_weights_are_there() -> None:
    memory = planned("llama-3-70b", gpu_memory="11GB").memory
    assert memory.factorise > memory.activations + memory.backward_moments
    assert memory.device == memory.weights + memory.factorise


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", ["140GB", "80GB", "48GB", "40GB"])
def test_a_plan_covers_the_model_once_within_its_memory(name: str, memory: str) -> None:
    plan = planned(name, gpu_memory=memory, host_memory="2TB")
    assert layers(plan) == list(range(len(layers(plan))))
    assert plan.memory.device <= 0.9 * plan.cluster.device_memory
    assert plan.memory.host <= plan.cluster.host_memory
    assert plan.workers <= plan.cluster.workers
    assert sum(len(wave) for wave in plan.waves) == len(plan.shards)


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    plan = planned(name)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.8])
def test_the_rank_that_is_planned_with_is_the_uniform_one(
    base: Base, keep: float, pivoted: bool
) -> None:
    for matrix in base.spec.matrices:
        rank, shape = rank_at(matrix, keep, pivoted), (matrix.out_features, matrix.in_features)
        factors: Factors = "pivoted" if pivoted else "plain"
        assert factor_parameters(factors, rank, *shape) <= keep * matrix.size
        assert factor_parameters(factors, rank + 1, *shape) > keep * matrix.size


@pytest.mark.parametrize(("workers", "most"), [(1, 800), (2, 400), (3, 266), (4, 200), (5, 160)])
def test_fewer_workers_have_no_more_than_their_nodes(workers: int, most: int) -> None:
    assert share([(8, 800), (1, 100)], workers) == most
