"""Numbers depend on model, text and settings, never on how many workers compute them."""

from typing import Any

import pytest

from pipeline.compress import compress
from pipeline.request.inputs import gather, tokens_sha256
from pipeline.request.preflight import look
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from schemas.run.identity import Ground, Identities, identities
from tests.integration.conftest import Reference
from tests.integration.support import KINDS, item_sums, weight_sums
from tests.items import local
from workers.storage.places import files_below

SHAPES = {
    "a chain of three": {"workers": 3},
    "three waves of two": {"workers": 2, "shard_layers": 1},
    "two replicas in waves": {"workers": 2, "replicas": 2, "shard_layers": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shards_waves_and_replicas_write_the_same_bytes(
    shape: str, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.mktemp("workers") / "output"
    cluster = ClusterConfig(device="cpu", **SHAPES[shape])
    config = reference.config.model_copy(update={"output": output, "cluster": cluster})
    result = compress(config)
    assert len(result.worker_peak_bytes) == cluster.workers
    left = {name.split("/")[0] for name in files_below(config.run_folder)}
    assert left == {
        *KINDS,
        "owner",
        "progress.json",
        "records",
        "run.json",
    }  # nothing of waves or replicas
    assert weight_sums(output) == weight_sums(local(reference.output.path))
    items = item_sums(config.run_folder, *KINDS)
    expected = item_sums(reference.config.run_folder, *KINDS)
    assert items.keys() <= expected.keys()  # another test may add factors of another ratio
    assert items == {key: expected[key] for key in items}
    assert {key.split("/")[0] for key in items} == set(KINDS)


@pytest.fixture(scope="module")
def plain(reference: Reference) -> Identities:
    return named(reference.config)


@pytest.mark.parametrize("setting", [{"micro_batch": 2}, {"segments": 3}, {"samples": 63}])
def test_what_changes_rounding_changes_the_identities(
    setting: dict[str, Any], plain: Identities, reference: Reference
) -> None:
    text = reference.config.calibration.model_copy(update=setting)
    other = named(reference.config.model_copy(update={"calibration": text}))
    assert other.forward != plain.forward
    assert other.bases != plain.bases
    assert other.factors != plain.factors


def test_what_does_not_is_in_none_of_them(plain: Identities, reference: Reference) -> None:
    cluster = ClusterConfig(workers=5, device="auto", item_timeout_s=1.0)
    output = local(reference.config.output).with_name("elsewhere")
    update = {"cluster": cluster, "output": output, "ratio": (0.1, 0.2)}
    assert named(reference.config.model_copy(update=update)) == plain


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
