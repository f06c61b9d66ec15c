"""What a worker hands on is read where it lies, in Ray's shared memory."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from schemas.request.config import RunConfig
from schemas.run.identity import Identities
from tests.integration.support import ask
from tests.models import tiny_model
from workers.actors.layer_shard import LayerShard
from workers.evaluation.scoring import Rows
from workers.model.inspection import inspect
from workers.storage.keys import RUN_RECORD
from workers.storage.places import write

KEY = "boundaries/test/0.safetensors"
ROWS = torch.randn(1, 512, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def config(local_ray: None, tmp_path: Path) -> RunConfig:
    return ask(tiny_model(tmp_path / "model"), Path("unused.txt"), tmp_path / "output")


def test_hidden_states_of_a_compression(config: RunConfig) -> None:
    shard: Any = LayerShard
    worker = shard.remote(1)
    spec = inspect(Path(config.model))
    write(config.run_folder / RUN_RECORD, b"{}")
    ids = Identities(forward="f", backward="b", bases="c", factors="d")
    ray.get([worker.prepare.remote(config, spec), worker.identify.remote(ids)])
    ray.get(worker.write.remote(KEY, ray.put(ROWS)))
    found = ray.get(worker.read.remote(KEY))
    assert torch.equal(found, ROWS)
    assert is_shared(found)
    ray.kill(worker)


def test_rows_of_an_evaluation(local_ray: None, tmp_path: Path) -> None:
    shard: Any = LayerShard
    worker = shard.remote(1)
    ray.get(worker.join.remote(tmp_path))
    tokens = torch.arange(512)[None]
    ray.get(worker.write.remote(KEY, Rows(tokens, (ROWS,))))
    found = ray.get(worker.read.remote(KEY))
    assert torch.equal(found.tokens, tokens)
    [hidden] = found.hidden
    assert torch.equal(hidden, ROWS)
    assert is_shared(hidden)
    ray.kill(worker)


def is_shared(tensor: Tensor) -> bool:
    """Whether its memory is that of Ray's object store, as this process has mapped it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, end = (int(bound, 16) for bound in line.partition(" ")[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return "/plasma" in line
    return False
