"""Which layers a worker of a streamed evaluation holds, from shapes and memory alone."""

import itertools
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.plan.evaluation import EvaluationPlan, boundary_bytes, plan_evaluation
from runtime.configuration_lowrank import ENCODINGS
from schemas.errors import ConfigError
from schemas.run.plan import ClusterSpec
from tests.low_rank import make_checkpoint
from tests.models import tiny_model
from workers.checkpoint.contents import inspect_decoder
from workers.checkpoint.source import Source

MUCH = 2**40


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Seven dense layers, and a low-rank model of five."""
    root = tmp_path_factory.mktemp("models")
    dense = tiny_model(root / "dense", num_hidden_layers=7)
    small = make_checkpoint(root / "small", "mistral", ENCODINGS, num_hidden_layers=5).folder
    return [Source(str(f), None, inspect_decoder(f), "F32") for f in (dense, small)]


def planned(
    sources: list[Source], workers: int, shard_layers: int | None = None, memory: int = MUCH
) -> EvaluationPlan:
    cluster = ClusterSpec(
        workers=workers,
        device="cuda",
        device_name="",
        device_memory=memory,
        host_memory=MUCH,
        dtype="float32",
    )
    return plan_evaluation(sources, cluster, shard_layers)


@pytest.mark.parametrize(
    ("workers", "shard_layers", "waves"),
    [(1, None, [1]), (3, None, [3]), (9, None, [5]), (2, 2, [2, 2]), (2, 3, [2, 1]), (1, 7, [1])],
)
def test_every_layer_of_each_model_is_in_one_shard(
    sources: list[Source], workers: int, shard_layers: int | None, waves: list[int]
) -> None:
    plan = planned(sources, workers, shard_layers)
    assert [len(wave) for wave in plan.waves] == waves
    parts = list(itertools.chain(*plan.waves))
    for model, source in enumerate(sources):
        layers = [layer for part in parts for layer in part[model].range]
        assert layers == list(range(source.spec.layers))
        sizes = [len(part[model].range) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


def test_weights_are_those_of_the_files(sources: list[Source]) -> None:
    files = [load_file(Path(source.model) / "model.safetensors") for source in sources]
    counted = [
        sum(t.numel() for t in tensors.values() if t.is_floating_point()) for tensors in files
    ]
    assert [source.spec.parameters for source in sources] == counted
    orders = sum(t.numel() for t in files[1].values() if not t.is_floating_point())
    assert planned(sources, 1).weight_bytes == 4 * (sum(counted) + orders)


def test_shards_are_as_few_as_fit(sources: list[Source]) -> None:
    whole = planned(sources, 1).weight_bytes
    tight = planned(sources, 1, memory=whole)  # some of it is for activations
    assert [len(wave) for wave in tight.waves] == [1, 1]
    assert tight.weight_bytes == planned(sources, 2).weight_bytes < whole
    with pytest.raises(ConfigError, match="one layer of each model takes"):
        planned(sources, 1, memory=1000)


def test_what_waits_between_waves(sources: list[Source]) -> None:
    assert boundary_bytes(sources, tokens=10) == 2 * 10 * (4 * 32 + 4 * 32 + 8)
