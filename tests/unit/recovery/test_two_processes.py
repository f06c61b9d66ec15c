"""Layers sharded over two processes are trained as on one, but for rounding, and restored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from schemas.result.recovery import Look
from tests.documents import ROOT
from tests.models import tiny_model
from tests.recovery import cut, group, job_of, looks, state, trainer_of
from workers.recovery.job import Job
from workers.recovery.refined import RefinedLayers
from workers.recovery.training import Trainer


def train(folder: Path, rank: int, world: int) -> list[Look]:
    """Train on uneven parts of a batch: three windows on two processes, one at a time."""
    truncated = cut(folder / "model")
    with group(folder / f"group-{world}", rank, world):
        trainer = trainer_of(truncated, micro_batch=1, norms=True)
        found = looks(trainer)
        require_restored(trainer, job_of(folder / f"run-{world}", spec=truncated.spec))
        return found


@torch.no_grad()
def require_restored(trainer: Trainer, job: Job) -> None:
    """Lose what is trained of the first layer, which was committed, and fill it again."""
    before = state(trainer)
    RefinedLayers(job, trainer.trained).commit(0, left=0.5, seconds=1.0)
    for name, parameter in trainer.trained.items():
        if name.startswith(f"{job.spec.path}.0."):
            parameter.zero_()
    dist.barrier()
    assert RefinedLayers(job, trainer.trained).restore() == [0.5]
    assert all(torch.equal(before[name], p) for name, p in trainer.trained.items())


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    alone = train(tmp_path, 0, 1)
    command = [sys.executable, "-m", __name__, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        found = train(tmp_path, 0, 2)
        written, _ = other.communicate()
    assert other.returncode == 0
    assert found == [Look(**look) for look in json.loads(written.splitlines()[-1])]
    assert [look.held_out for look in found] == pytest.approx(
        [look.held_out for look in alone], rel=1e-4
    )


if __name__ == "__main__":
    found = train(Path(sys.argv[1]), 1, 2)
    print(json.dumps([look.model_dump() for look in found]))
