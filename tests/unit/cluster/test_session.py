"""Joining a cluster: what Ray says of it, in words for a user; and workers in chains."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
    get_authentication_mode,
)

from pipeline.cluster import session
from pipeline.cluster.actors import chains
from pipeline.cluster.session import ray_session
from schemas.errors import ConfigError
from schemas.request.groups import ClusterConfig
from schemas.run.plan import WorkerFacts

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
    monkeypatch.setattr(session, "require_answer", lambda address, setting: None)
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
    monkeypatch.setattr(session, "require_answer", lambda address, setting: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    cluster = ClusterConfig(address="ray://head:10001")
    with pytest.raises(RuntimeError, match="out of files"), ray_session(cluster, threads=1):
        pass


def test_ray_takes_no_signal_from_who_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its handler raises would be lost here."""

    class Removed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def init(**_: Any) -> None:
        ray._private.utils.set_sigterm_handler(lambda *_: sys.exit(1))  # type: ignore[no-untyped-call]
        Removed()

    received = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with ray_session(ClusterConfig(), threads=1):
        assert received == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("workers", "cpus"), [(None, 4096), (2, 8192)])
def test_an_embedded_ray_has_the_cpus_that_workers_ask_for(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, cpus: int
) -> None:
    """Threads may be those of another machine, on which a checkpoint was compressed."""

    def init(num_cpus: int, **_: Any) -> None:
        raise RuntimeError(f"{num_cpus} CPUs")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    cluster = ClusterConfig(workers=workers)
    with pytest.raises(RuntimeError, match=f"{cpus} CPUs"), ray_session(cluster, threads=4096):
        pass


def test_neither_a_token_nor_the_need_of_one_passes_from_session_to_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**_: Any) -> None:
        enable_token_auth_by_default()
        given.append(loader.get_raw_token())
        assert given == [os.environ["RAY_AUTH_TOKEN"]]
        raise RuntimeError("as far as it goes")

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-a-cluster")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    given, loader = list[str](), AuthenticationTokenLoader.instance()
    loader.reset_cache()
    mode = get_authentication_mode()
    assert loader.get_raw_token(ignore_auth_mode=True) == "of-a-cluster"  # which Ray remembers
    with pytest.raises(RuntimeError, match="as far"), ray_session(ClusterConfig(workers=1), 1):
        pass
    assert len(given) == 1
    assert get_authentication_mode() == mode
    assert loader.get_raw_token(ignore_auth_mode=True) == "of-a-cluster"
    loader.reset_cache()


def on_node(name: str) -> WorkerFacts:
    return WorkerFacts(
        node=name,
        device="cuda",
        device_name="a GPU",
        device_memory=1,
        dtype="bfloat16",
        training_dtype="bfloat16",
        gpu_reserved=True,
    )


@pytest.mark.parametrize(
    ("nodes", "length", "expected"),
    [
        ("ABABABAB", 8, ["AAAABBBB"]),  # as Ray spreads them over two nodes
        ("ABABABAB", 4, ["AAAA", "BBBB"]),
        ("ABCABCABC", 9, ["AAABBBCCC"]),
        ("ABABABABAB", 2, ["AA", "AA", "BB", "BB", "AB"]),
        ("ABCBCBAB", 4, ["BBBB", "AACC"]),  # in the order of the nodes both would cross
        ("AAAA", 2, ["AA", "AA"]),
        ("AB", 1, ["A", "B"]),
    ],
)
def test_a_chain_stays_on_a_node_where_it_fits(
    nodes: str, length: int, expected: list[str]
) -> None:
    workers = list(enumerate(nodes))
    found = chains(workers, [on_node(name) for name in nodes], length)
    assert ["".join(name for _, name in chain) for chain in found] == expected
    assert sorted(worker for chain in found for worker in chain) == workers
