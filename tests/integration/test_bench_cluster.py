"""Models that are benched on a cluster, each alone on a worker."""

from pathlib import Path

import pytest

from pipeline.bench import bench
from schemas.errors import ConfigError
from schemas.request.bench import BenchConfig
from tests.models import tiny_model


def request(checkpoint: str, **fields: object) -> BenchConfig:
    asked = {"batch": 1, "prompt_tokens": "3,4", "new_tokens": 2, "rounds": 2, "threads": 1}
    return BenchConfig(
        checkpoint=checkpoint, **(asked | {"device": "cpu", "address": "auto"} | fields)
    )


def test_every_model_has_a_worker(local_ray: None, tmp_path: Path) -> None:
    base, small = (str(tiny_model(tmp_path / name)) for name in ("base", "small"))
    report = bench(request(small, baseline=base, dtype="float32"))
    assert [model.name for model in report.models] == [base, small]
    assert not report.in_turn
    assert report.device == "cpu"
    for model in report.models:
        assert [len(served.rounds) for served in model.served] == [2, 2]
        assert model.served[1].workload.prompt_tokens == 4
        assert model.peak_bytes


def test_models_that_no_node_can_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="--address needs models that every node sees"):
        bench(request("s3://bucket/model"))
