"""The object store of an embedded Ray: as large as what is under way, within memory."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants

from pipeline.cluster import object_store
from pipeline.cluster.object_store import run_bytes, stream_bytes, within_memory
from pipeline.cluster.session import ray_session
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, EvaluationTextConfig
from workers.model.inspection import read_spec

GB = 10**9
LLAMA_8B = "tests/configs/llama-3-8b.json"  # hidden states of 4,096


def ask(workers: int | None, **calibration: Any) -> RunConfig:
    return RunConfig(
        model=LLAMA_8B,
        output=Path("out"),
        ratio=(0.2,),
        calibration=CalibrationConfig(text="text", **calibration),
        evaluation=EvaluationTextConfig(sequence_length=128),
        cluster=ClusterConfig(workers=workers),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # 3 x 2 micro-batches, each before and after a shard
        (ask(2, sequence_length=2048, gradient_length=2), 6 * 2 * 2048 * 4096 * 4),
        (ask(2, sequence_length=2048, gradient_length=2, micro_batch=4), 48 * 2048 * 4096 * 4),
        # or kept by each of two shards, on its way there and back
        (ask(2, sequence_length=2, gradient_length=2048), 6 * 3 * 2048 * 4096 * 4),
        # or a window through both models
        (ask(2, sequence_length=2, gradient_length=2), 6 * 2 * 2 * 128 * 4096 * 4),
        (ask(None, sequence_length=2048, gradient_length=512), 24 * 9 * 512 * 4096 * 4),
    ],
    ids=["forward", "micro-batches", "backward", "comparison", "eight workers"],
)
def test_it_holds_what_a_chain_has_under_way(config: RunConfig, expected: int) -> None:
    assert run_bytes(config, read_spec(LLAMA_8B, None)) == expected


def test_an_evaluation_sends_forward_alone() -> None:
    assert stream_bytes(ClusterConfig(workers=3), 1000) == 3 * 3 * 2 * 1000


@pytest.mark.parametrize(
    ("needed", "available", "shared", "expected"),
    [
        (3 * GB, 100 * GB, 50 * GB, 3 * GB),
        (3 * GB, 8 * GB, 50 * GB, 2 * GB),  # a quarter of the memory
        (3 * GB, 100 * GB, GB, GB),
        (0, 100 * GB, 50 * GB, 512 * 1024**2),
        (3 * GB, GB, 64 * 10**6, 512 * 1024**2),  # a container's /dev/shm: Ray takes its disk
    ],
)
def test_an_embedded_ray_is_given_what_there_is_room_for_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, needed: int, available: int, shared: int, expected: int
) -> None:
    def usage(folder: str) -> Any:
        assert folder == "/dev/shm"
        return shutil._ntuple_diskusage(2 * shared, shared, shared)

    def init(**options: Any) -> None:
        given.append(options["object_store_memory"])
        raise RuntimeError("as far as it goes")

    given: list[int] = []
    before = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER
    monkeypatch.setattr(object_store, "available_bytes", lambda: available)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert within_memory(needed) == expected
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(RuntimeError, match="as far as it goes"),
        ray_session(ClusterConfig(), threads=1, store_bytes=needed),
    ):
        pass
    assert given == [expected]
    assert (dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER) == before  # one may be joined next
