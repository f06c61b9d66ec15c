"""The record of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.machines import on_cpu
from pipeline.plan.planner import make_plan
from schemas.request.config import RunConfig
from schemas.run.identity import Ground, identities
from schemas.run.record import RunRecord
from workers.model.inspection import inspect

GROUND = Ground(
    base_files={"config.json": "c" * 64, "model.safetensors": "d" * 64},
    forward_tokens="f",
    backward_tokens="b",
    dtype="float32",
    device="x86_64",
    versions={"torch": "2.13.0"},
)


@pytest.fixture
def record(model: Path, tmp_path: Path) -> Callable[..., RunRecord]:
    """run.json of a request that differs in `fields`, on a ground that differs in `ground`."""
    spec = inspect(model)

    def make(ground: dict[str, Any] | None = None, **fields: Any) -> RunRecord:
        asked = {"model": str(model), "output": str(tmp_path / "out"), "ratio": 0.2} | fields
        config, found = RunConfig.model_validate(asked), GROUND.model_copy(update=ground or {})
        return RunRecord(
            config=config,
            ground=found,
            ids=identities(config, found),
            plan=make_plan(config, spec, on_cpu("auto", 2, 10**12)),
            taps={},
            matrices=14,
            outputs={},
        )

    return make
