"""Two nights over two checkpoints with the real compression: judged, published, not done again.

And the command of a night, whose compression takes no time.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.compress import compress
from pipeline.nightly import catalog
from pipeline.nightly.night import nightly
from schemas.errors import RunError
from schemas.request.config import RunConfig
from schemas.request.groups import EvaluationTextConfig
from schemas.request.nightly import NightlyConfig
from schemas.result.manifest import RunResult
from tests.integration.support import ask, file_sums
from tests.models import tiny_model
from tests.nights import FakeCompress, pointed
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


def test_the_command_ends_with_3_if_a_checkpoint_failed(
    local_ray: None,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, fake, began_anew = tmp_path / "source", FakeCompress(), list[bool]()
    asked = ["nightly", "--watch", source, "--output", tmp_path / "out", "--ratio", 0.2]
    asked += ["--calibration", text, "--set", f"evaluation.text={text}", "--max", 2]

    def made(config: RunConfig, *, fresh: bool) -> RunResult:
        began_anew.append(fresh)
        return fake(config)

    def night(*more: str) -> int:
        return CliRunner().invoke(app, [*map(str, asked), *more]).exit_code

    monkeypatch.setattr("pipeline.compress.compress", made)
    tiny_model(source / "checkpoint-1")
    assert night() == 0
    assert pointed(tmp_path / "out") == {"0.20": "checkpoint-1"}
    tiny_model(source / "checkpoint-2", seed=2)
    fake.failures["checkpoint-2"] = RunError("no room")
    assert night("--fresh") == 3
    assert began_anew == [False, True]
    assert "checkpoint-2: could not be done" in caplog.text
