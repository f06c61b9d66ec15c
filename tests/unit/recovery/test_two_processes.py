"""Layers sharded over two processes are trained as on one, but for rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.result.recovery import Look
from tests.models import tiny_model
from tests.recovery import cut, group, trainer_of

ROOT = Path(__file__).parents[3]


def train(folder: Path, rank: int, world: int) -> list[Look]:
    """Train on uneven parts of a batch: three windows on two processes, one at a time."""
    truncated = cut(folder / "model")
    with group(folder / f"group-{world}", rank, world):
        trainer = trainer_of(truncated, micro_batch=1, norms=True)
        return [trainer.look(), *trainer.run()]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    alone = train(tmp_path, 0, 1)
    command = [sys.executable, "-m", __name__, str(tmp_path)]
    others = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = []
    for process in others:
        written, _ = process.communicate()
        assert process.returncode == 0
        found.append([Look(**look) for look in json.loads(written.splitlines()[-1])])
    assert found[0] == found[1]
    assert [look.held_out for look in found[0]] == pytest.approx(
        [look.held_out for look in alone], rel=1e-4
    )


if __name__ == "__main__":
    looks = train(Path(sys.argv[1]), int(sys.argv[2]), 2)
    print(json.dumps([look.model_dump() for look in looks]))
