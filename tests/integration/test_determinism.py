"""Numbers depend on model, text and settings, never on how many workers compute them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.compress import compress
from pipeline.request.inputs import gather, tokens_sha256
from pipeline.request.preflight import look
from pipeline.run import Run
from pipeline.stages.calibrate import forget_streams
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from schemas.run.identity import Ground, Identities, Record, identities
from tests.integration.support import KINDS, ask, item_sums, weight_sums
from tests.items import local
from tests.models import tiny_model
from workers.storage.places import files_below

SHAPES = {
    "a chain of three": {"workers": 3},
    "three waves of two": {"workers": 2, "shard_layers": 1},
    "two replicas in waves": {"workers": 2, "replicas": 2, "shard_layers": 3},
}


@pytest.fixture(scope="module")
def alone(local_ray: None, text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of one worker over six layers, on two windows a segment."""
    folder = tmp_path_factory.mktemp("alone")
    config = ask(tiny_model(folder / "model", num_hidden_layers=6), text, folder / "output")
    compress(config)
    return config


@pytest.mark.parametrize("shape", SHAPES)
def test_shards_waves_and_replicas_write_the_same_bytes(
    shape: str, alone: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ClusterConfig(device="cpu", **SHAPES[shape])
    config = alone.model_copy(update={"output": tmp_path / "output", "cluster": cluster})
    waiting = list[Record]()

    def forget(run: Run) -> None:
        waiting.extend(run.store.records("boundaries"))
        forget_streams(run)

    monkeypatch.setattr("pipeline.compress.forget_streams", forget)
    result = compress(config)
    assert not waiting  # a wave has removed what the one before it left
    assert len(result.worker_peak_bytes) == cluster.workers
    left = {name.split("/")[0] for name in files_below(config.run_folder)}
    assert left == {
        *KINDS,
        "owner",
        "progress.json",
        "records",
        "run.json",
    }  # nothing of waves or replicas
    assert weight_sums(local(config.output)) == weight_sums(local(alone.output))
    items = item_sums(config.run_folder, *KINDS)
    assert items == item_sums(alone.run_folder, *KINDS)
    assert {key.split("/")[0] for key in items} == set(KINDS)


@pytest.fixture(scope="module")
def plain(alone: RunConfig) -> Identities:
    return named(alone)


@pytest.mark.parametrize("setting", [{"micro_batch": 2}, {"segments": 3}, {"samples": 7}])
def test_what_changes_rounding_changes_the_identities(
    setting: dict[str, Any], plain: Identities, alone: RunConfig
) -> None:
    text = alone.calibration.model_copy(update=setting)
    other = named(alone.model_copy(update={"calibration": text}))
    assert other.forward != plain.forward
    assert other.bases != plain.bases
    assert other.factors != plain.factors


def test_what_does_not_is_in_none_of_them(plain: Identities, alone: RunConfig) -> None:
    cluster = ClusterConfig(workers=5, device="auto", item_timeout_s=1.0)
    output = local(alone.output).with_name("elsewhere")
    update = {"cluster": cluster, "output": output, "ratio": (0.1, 0.2)}
    assert named(alone.model_copy(update=update)) == plain


def named(config: RunConfig) -> Identities:
    inputs = gather(look(config))
    assert inputs.backward is not None
    ground = Ground(
        base_files=inputs.base_files,
        forward_tokens=tokens_sha256(inputs.forward),
        backward_tokens=tokens_sha256(inputs.backward),
        dtype="float32",
        device="cpu",
        versions={},
    )
    return identities(config, ground)
