"""Which layers a worker of a streamed evaluation holds, from shapes and memory alone."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.plan.evaluation import EvaluationPlan, _bounds, boundary_bytes, plan_evaluation
from schemas.errors import ConfigError
from schemas.run.plan import ClusterSpec
from tests.low_rank import FORMS, make_checkpoint
from tests.models import tiny_model
from workers.checkpoint.source import Source
from workers.model.inspection import inspect_decoder

MUCH = 2**40


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Seven dense layers, and a low-rank model of five."""
    root = tmp_path_factory.mktemp("models")
    dense = tiny_model(root / "dense", num_hidden_layers=7)
    small = make_checkpoint(root / "small", "mistral", FORMS, num_hidden_layers=5).folder
    return [Source(str(f), None, inspect_decoder(f), "F32") for f in (dense, small)]


def planned(
    sources: list[Source],
    workers: int,
    shard_layers: int | None = None,
    memory: int = MUCH,
    ran: int = 0,
) -> EvaluationPlan:
    cluster = ClusterSpec(
        workers=workers,
        device="cuda",
        device_name="",
        device_memory=memory,
        host_memory=MUCH,
        dtype="float32",
    )
    return plan_evaluation(sources, cluster, shard_layers, ran)


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
        assert min(len(part[model].range) for part in parts) >= 1


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_no_shard_has_more_work_than_of_layers_equal_in_number(
    sources: list[Source], workers: int
) -> None:
    """The last shard has the head, which each token passes as it does the layers."""
    (parts,) = planned(sources, workers).waves
    for model, source in enumerate(sources):
        spec = source.spec
        layer = sum(math.prod(tensor.shape) for tensor in spec.tensors if tensor.layer == 1)
        head = spec.hidden_size * spec.vocab_size / layer
        work: list[float] = [len(part[model].range) for part in parts[:-1]]
        work.append(len(parts[-1][model].range) + head)
        equal = [
            spec.layers * (part + 1) // workers - spec.layers * part // workers
            for part in range(workers)
        ]
        assert max(work) <= max(*equal[:-1], equal[-1] + head)


@pytest.mark.parametrize("last", [1, 20, 33, 100, 400])
def test_each_part_has_a_layer_however_light_the_last_one_is(last: int) -> None:
    """As it is if it keeps less than others, in a model without a head of its own."""

    def held(layers: range) -> list[Any]:
        return [SimpleNamespace(shape=(last if at == 29 else 100, 1)) for at in layers]

    spec = SimpleNamespace(layers=30, hidden_size=0, vocab_size=0, held=held)
    source: Any = SimpleNamespace(spec=spec)
    for count in range(1, 31):
        found = _bounds(source, count)
        assert (found[0], found[-1], len(found)) == (0, 30, count + 1)
        assert all(after > before for before, after in itertools.pairwise(found))


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


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_of_a_base_that_has_run_the_last_shard_has_the_head(
    sources: list[Source], workers: int
) -> None:
    plan, alone = planned(sources, workers, ran=1), planned(sources[1:], workers)
    (parts,), (others,) = plan.waves, alone.waves
    assert [part[1] for part in parts] == [part[0] for part in others]
    held = [sources[0].spec.held(part[0].range) for part in parts]
    roles = [{tensor.role for tensor in tensors} for tensors in held]
    assert roles == [{"outside"}] * (workers - 1) + [{"outside", "head"}]
    assert alone.weight_bytes < plan.weight_bytes < planned(sources, workers).weight_bytes


def test_what_waits_between_waves(sources: list[Source]) -> None:
    assert boundary_bytes(sources, tokens=10) == 2 * 10 * (4 * 32 + 4 * 32 + 8)
