"""Addresses of clusters: what answers there, or does not, in each form that an address has."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc  # type: ignore[import-untyped]
import pytest
import ray

from pipeline.cluster import joining
from pipeline.cluster.session import ray_session
from schemas.errors import ClusterError
from schemas.request.groups import ClusterConfig
from tests.ports import free_port


def serve(head: bool, port: int = 0, *, refuses: bool = False) -> tuple[grpc.Server, int]:
    """A server that speaks Ray's protocol, and knows the question or not, and answers it or
    `refuses`; and its port.
    """
    server = grpc.server(ThreadPoolExecutor(1))

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "another token")
        return b""

    if head:
        alive = grpc.unary_unary_rpc_method_handler(answer)
        service = "ray.rpc.NodeInfoGcsService"
        handler = grpc.method_handlers_generic_handler(service, {"CheckAlive": alive})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback only, and as long as a busy machine may need to answer."""
    monkeypatch.setattr(joining, "canonicalize_bootstrap_address", lambda address: address)
    monkeypatch.setattr(joining, "_PATIENCE_S", 600)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def no_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is never asked: nothing will answer."""

    def fail(**_: object) -> None:
        raise AssertionError("ray.init was called")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(joining, "_PATIENCE_S", 0.1)


@pytest.fixture
def website() -> Iterator[int]:
    """The port of a server that is not a Ray."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[::1]:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_listens_is_refused_before_ray_starts(form: str) -> None:
    address = form.format(free_port())
    with pytest.raises(ClusterError) as caught, ray_session(ClusterConfig(address=address), 1):
        pass
    message = str(caught.value)
    assert message.startswith(f"cluster.address {address!r}: no Ray cluster answers at ")
    assert "leave the address out" in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_init")
def test_the_environment_is_named_where_it_gave_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS '127"), ray_session(ClusterConfig(), 1):
        pass


@pytest.mark.usefixtures("no_init")
def test_a_server_that_is_no_ray_is_refused(website: int) -> None:
    cluster = ClusterConfig(address=f"127.0.0.1:{website}")
    with pytest.raises(ClusterError, match="no Ray cluster answers"), ray_session(cluster, 1):
        pass


def test_the_head_of_a_cluster_answers() -> None:
    server, port = serve(head=True)
    joining.require_answer(f"127.0.0.1:{port}", "cluster.address")
    server.stop(None).wait()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_asks_for_its_token_says_so(form: str) -> None:
    server, port = serve(head=True, refuses=True)
    with pytest.raises(ClusterError, match="asks for its token; export RAY_AUTH_MODE=token"):
        joining.require_answer(form.format(port), "cluster.address")
    server.stop(None).wait()


def test_a_cluster_that_is_just_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts when the first try has found nothing there."""
    port, servers = free_port(), list[grpc.Server]()

    def start(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not servers:
            servers.append(serve(True, port)[0])

    def channel(place: str) -> grpc.Channel:
        made = grpc.insecure_channel(place, [("grpc.initial_reconnect_backoff_ms", 100)])
        made.subscribe(start)
        return made

    monkeypatch.setattr(joining, "create_gcs_channel", channel)
    joining.require_answer(f"127.0.0.1:{port}", "cluster.address")
    servers[0].stop(None).wait()


def test_the_port_of_rays_client_is_no_head_but_right_for_the_client() -> None:
    server, port = serve(head=False)
    joining.require_answer(f"ray://127.0.0.1:{port}/?ignored", "cluster.address")
    with pytest.raises(ClusterError, match="UNIMPLEMENTED"):
        joining.require_answer(f"127.0.0.1:{port}", "cluster.address")
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"HTTP address .* <head_node_ip>:6379"),
        ("head", "Invalid address format: head"),
    ],
)
def test_what_ray_says_of_an_address_is_one_line(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    cluster = ClusterConfig(address=address)
    with pytest.raises(ClusterError, match=message) as caught, ray_session(cluster, 1):
        pass
    assert "\\n" not in str(caught.value)
