"""A worker on a node that does not see what the driver sees, or is of another kind, says so."""

import socket
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError, WorkerError
from schemas.request.config import RunConfig
from schemas.run.plan import WorkerFacts
from workers.actors.layer_shard import LayerShard


def worker(**fields: Any) -> Any:
    """A worker of a run, without a process of its own."""
    shard: Any = object.__new__(LayerShard.__ray_metadata__.modified_class)  # type: ignore[attr-defined]
    shard._config = asked(**fields)
    return shard


def asked(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({"ratio": 0.2} | fields)


def refusal(call: Any, *args: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


def test_a_model_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "base"
    fields = {"model": str(absent), "output": tmp_path / "out"}
    message = refusal(worker(**fields).prepare, asked(**fields), None)
    assert message.startswith(
        f"model {absent} is not seen on {socket.gethostname()}; name a folder"
    )


def test_a_run_directory_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    output = tmp_path / "out"
    message = refusal(worker(model=str(tmp_path), output=output).identify, None)
    assert message.startswith(f"run_dir {output}.run is not seen on {socket.gethostname()}")


def test_a_worker_of_another_kind_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    one = worker(model="m", output="out")
    mine = WorkerFacts(
        node="a",
        device="cpu",
        device_name="x86_64",
        device_memory=0,
        dtype="float32",
        training_dtype="float32",
        gpu_reserved=False,
    )
    identified = list[object]()
    monkeypatch.setattr(type(one), "prepare", lambda *_: mine)
    monkeypatch.setattr(type(one), "identify", lambda _, ids: identified.append(ids))
    one.enlist(None, None, "ids", mine.model_copy(update={"node": "b", "device_memory": 1}))
    assert identified == ["ids"]
    with pytest.raises(WorkerError, match=rf"on {socket.gethostname()} differs .*'aarch64'"):
        one.enlist(None, None, "ids", mine.model_copy(update={"device_name": "aarch64"}))
    assert identified == ["ids"]
