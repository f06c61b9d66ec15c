"""A node that does not see what the driver sees says so, by its name, before any work."""

import socket
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from schemas.request.config import RunConfig
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
