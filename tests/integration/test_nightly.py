"""Two nights over two checkpoints with the real compression: judged, published, not done again."""

from pathlib import Path

import pytest

from pipeline.compress import compress
from pipeline.nightly import catalog
from pipeline.nightly.night import nightly
from schemas.request.config import RunConfig
from schemas.request.groups import EvaluationTextConfig
from schemas.request.nightly import NightlyConfig
from tests.integration.support import ask, file_sums
from tests.models import tiny_model
from tests.nights import pointed
from workers.checkpoint.published import read_manifest


@pytest.mark.slow
def test_checkpoints_are_compressed_judged_and_published(
    local_ray: None, text: Path, tmp_path: Path
) -> None:
    source, prefix = tmp_path / "source", tmp_path / "out"
    tiny_model(source / "checkpoint-900", initializer_range=0.05)
    tiny_model(source / "checkpoint-1000", num_hidden_layers=1)  # loses 0.1 nats, the other 3e-4
    evaluation = EvaluationTextConfig(text=str(text), sequence_length=64, windows=6)
    common = ask(source, text, prefix, ratio=0.2, evaluation=evaluation)
    shared = RunConfig.model_fields.keys() & NightlyConfig.model_fields.keys()
    asked = {name: getattr(common, name) for name in shared}
    gate = {"kl": 0.02, "generation": False}
    config = NightlyConfig.model_validate(asked | {"watch": str(source), "max": 2, "gate": gate})

    nightly(config, compress)
    _, rejected, _, published = rows = catalog.read(prefix)
    assert [(row.event, row.name) for row in rows] == [
        ("started", "checkpoint-1000"),
        ("rejected", "checkpoint-1000"),
        ("started", "checkpoint-900"),
        ("published", "checkpoint-900"),
    ]
    assert rejected.detail.endswith("nats, allowed 0.02")
    assert published.base_perplexity
    assert published.perplexity
    assert published.kl is not None
    assert published.kl < 0.02 < (rejected.kl or 0.0)
    assert pointed(prefix) == {"0.20": "checkpoint-900"}
    for row in (rejected, published):
        assert read_manifest(prefix / str(row.path)).output == row.output
    assert not list((prefix / "runs").iterdir())

    before = file_sums(prefix / "checkpoints")
    assert nightly(config, compress).rows == []
    assert file_sums(prefix / "checkpoints") == before
