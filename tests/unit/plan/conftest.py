"""Plans of a tiny model on CPUs, and of the shipped shapes on described GPUs."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.plan.machines import Machines, on_cpu
from pipeline.plan.planner import make_plan, plan_checkpoint
from pipeline.request.flags import build
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.run.plan import Plan
from tests.documents import ROOT
from tests.models import tiny_model
from workers.model.inspection import inspect

SHAPES = ROOT / "tests" / "configs"
H100: dict[str, Any] = {"gpus": 8, "gpu_memory": "80GB", "host_memory": "1TB", "gpu_type": "h100"}


class Base(NamedTuple):
    folder: Path
    spec: ModelSpec

    def config(self, **fields: Any) -> RunConfig:
        given = {"model": str(self.folder), "output": "out", "ratio": [0.2, 0.5]} | fields
        return RunConfig.model_validate(given)

    def plan(self, workers: int = 2, **fields: Any) -> Plan:
        config = self.config(**fields)
        return make_plan(config, self.spec, on_cpu(config.numerics.dtype, workers, 10**12))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("base"), num_hidden_layers=7)
    return Base(folder, inspect(folder))


RANKS = {"allocation": "loss-aware-ranks"}
"""Flags of a run that cuts ranks alone."""


def planned(name: str, flags: dict[str, Any] | None = None, **machines: Any) -> Plan:
    """The plan of one of the shipped shapes on described GPUs."""
    given = {"model": str(SHAPES / f"{name}.json"), "ratio": 0.2, "output": Path("out")}
    return plan_checkpoint(build(RunConfig, given | (flags or {})), Machines(**(H100 | machines)))
