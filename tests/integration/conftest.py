"""One embedded Ray for all tests that run in this process, and one undisturbed run.

Who starts the processes of xdist reads this file, too, and runs no test: fixtures import what takes
seconds.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import writing
from tests.integration import asker, warm
from tests.prose import prose

if TYPE_CHECKING:
    from schemas.request.config import RunConfig
    from schemas.result.manifest import OutputResult
    from tests.integration.processes import Start


def pytest_configure(config: pytest.Config) -> None:
    """Start a server of warm processes; those of xdist inherit it from the one that starts them."""
    if asker.SOCKET not in os.environ:
        stack = contextlib.ExitStack()
        stack.enter_context(warm.server(Path(os.environ["RAY_TMPDIR"])))
        config.add_cleanup(stack.close)


class Endpoint(NamedTuple):
    """Where an S3 server may listen: a socket that is bound, and that nobody serves yet."""

    socket: socket.socket


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    """The environment names it, so that the workers of the session's Ray know it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
        os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"
        yield Endpoint(listening)


@pytest.fixture(scope="module", autouse=True)
def _warm_checks() -> Iterator[None]:
    """What the server of processes changes is changed here, too; unit tests know nothing of it."""
    from torch.utils import collect_env

    from workers.checkpoint import verify
    from workers.evaluation import continuations

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "INTERPRETER", (sys.executable, asker.__file__))
        patch.setattr(collect_env, "get_pretty_env_info", str)
        patch.setattr(continuations, "TOKENS", writing.TOKENS)
        yield


@pytest.fixture(scope="session")
def local_ray(endpoint: Endpoint) -> Iterator[None]:
    """A Ray of three CPUs in this process, with warm workers; `compress` uses it as it is."""
    import ray

    from tests.integration.rays import small_ray

    with small_ray():
        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=150 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English prose to calibrate on."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose(40_000))
    return path


class Reference(NamedTuple):
    """A run of one worker that nothing disturbed."""

    config: "RunConfig"
    output: "OutputResult"


@pytest.fixture(scope="session")
def reference(local_ray: None, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Six layers, with enough text for a stage to be caught in the middle.

    One process makes it for all of a run; each has a copy of what it wrote.
    """
    from pipeline.compress import compress
    from tests.integration.support import ask
    from tests.models import tiny_model

    mine = tmp_path_factory.getbasetemp()
    made = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "reference"
    windows = {"samples": 64, "gradient_samples": 32, "segments": 8}
    config = ask(made / "model", made / "prose.txt", made / "output", **windows)
    made.mkdir(exist_ok=True)
    with (made / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "output/_SUCCESS").exists():
            tiny_model(made / "model", num_hidden_layers=6)
            shutil.copy(text, made / "prose.txt")
            compress(config)
    folder = tmp_path_factory.mktemp("reference")
    for name in ("output", "output.run"):
        shutil.copytree(made / name, folder / name)
    config = config.model_copy(update={"output": folder / "output"})
    (output,) = compress(config).outputs
    return Reference(config, output)


@pytest.fixture
def start() -> "Iterator[Start]":
    """Starts commands; whatever is left of them is ended with the test."""
    from tests.documents import ROOT
    from tests.integration.processes import Command

    with contextlib.ExitStack() as stack:
        yield lambda arguments, **how: stack.enter_context(
            contextlib.closing(Command(arguments, ROOT, **how))
        )


@pytest.fixture
def waits_for_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training reports two events more at most than were read: it goes on while one is looked at,
    however late that is.
    """
    from ray.util.queue import Queue

    from pipeline.cluster import training

    monkeypatch.setattr(training, "Queue", functools.partial(Queue, maxsize=1))


@pytest.fixture
def config(reference: Reference, tmp_path: Path) -> "RunConfig":
    """The run of `reference` on two workers, elsewhere."""
    cluster = reference.config.cluster.model_copy(update={"workers": 2})
    return reference.config.model_copy(update={"output": tmp_path / "out", "cluster": cluster})
