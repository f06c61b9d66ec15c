"""Joining a cluster: what Ray says of it, in words for a user."""

from typing import Any

import pytest
import ray

import pipeline.cluster as cluster_module
from pipeline.cluster import ray_session
from schemas.config import ClusterConfig
from schemas.errors import ConfigError

# As ray._private.utils.check_version_info words it.
MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
    "This process was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


def test_another_ray_on_the_cluster_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError(MISMATCH)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster_module, "require_answer", lambda address, setting: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    cluster = ClusterConfig(address="ray://head:10001")
    with pytest.raises(ConfigError) as caught, ray_session(cluster, threads=1):
        pass
    message = str(caught.value)
    assert "'ray://head:10001': driver and cluster differ (Version mismatch:" in message
    assert "Ray: 2.59.0" in message
    assert "install the same ones there" in message


def test_another_failure_of_ray_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("out of files")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster_module, "require_answer", lambda address, setting: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    cluster = ClusterConfig(address="ray://head:10001")
    with pytest.raises(RuntimeError, match="out of files"), ray_session(cluster, threads=1):
        pass
