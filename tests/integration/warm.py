"""Processes that are forked from one that has imported torch and transformers already.

Importing them takes four seconds, and the tests start some hundred drivers, workers and checks of
a load. A server forks for every one of them. `Forked` asks it for a program and knows its process.
Whoever can only name an interpreter (a Ray for its workers, `verify` for its load check) starts
asker.py instead. Such a program finds this project among its modules, where a load check should
have none of it, and runs no exit handlers. The unit tests of `verify`, and commands that a test
starts cold, know nothing of it.

Run as `python -m tests.integration.warm LISTENING_SOCKET`, it is the server.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tests import writing
from tests.documents import ROOT
from tests.integration import asker
from tests.integration.asker import NUMBER, SOCKET, receive, send

# Ray is not among them: it reads the job of a worker from the environment when it is imported.
# What it imports is, and what transformers imports as late as a model is loaded.
_IMPORTS = (
    "torch.utils.collect_env",
    "transformers.conversion_mapping",
    "aiohttp.web",
    "colorful",
    "fsspec.implementations.local",
    "google.protobuf.struct_pb2",
    "google.protobuf.timestamp_pb2",
    "grpc.aio",
    "jsonschema",
    "logging.config",
    "msgpack",
    "opencensus.stats.stats",
    "opentelemetry.exporter.prometheus",
    "pandas",
    "pdb",
    "pyarrow.json",
    "pyarrow.parquet",
    "pydantic.dataclasses",
    "pydantic.v1",
    "requests",
    "rich.live",
    "tracemalloc",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "pipeline.cli.app",
    "pipeline.plan.planner",
    "pipeline.report.page",
    "pipeline.request.inputs",
    "workers.compressor",
    "workers.evaluation.scoring",
    "workers.checkpoint.verify",
)
_PEER = struct.Struct("3i")  # process, user and group at the other end of a socket


@contextlib.contextmanager
def server(folder: Path) -> Iterator[None]:
    """A server, with its socket in a folder whose path is short; who asks waits until it is ready.

    Every process that is started meanwhile knows it by its environment.
    """
    os.environ[SOCKET] = str(folder / "warm")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.environ[SOCKET])
        listening.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.warm", str(listening.fileno())],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            pass_fds=[listening.fileno()],
        )
    with process:  # which closes its standard input, and waits
        try:
            yield
        finally:
            del os.environ[SOCKET]
            process.kill()


class Forked:
    """A program that the server runs: a file, or `-m` and a module, and its arguments.

    It has what the tests need of `subprocess.Popen`; `streams` are its input, output and errors.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
    ) -> None:
        self._connection = send(arguments, environment, str(folder), streams)
        self.pid = receive(self._connection)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, less than zero after a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code at its end. Raises TimeoutExpired after `timeout` seconds, if any."""
        if self.returncode is None:
            ended = select.poll()  # unlike select, it takes any number of a file
            ended.register(self._connection, select.POLLIN)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
            with self._connection:
                self.returncode = receive(self._connection)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """A signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def asked() -> dict[int, int]:
    """Which process asked for each one that was forked and still runs."""
    if SOCKET not in os.environ:
        return {}
    name = Path(os.environ[SOCKET])
    notes = (path.name.split("-") for path in name.parent.glob(f"{name.name}-*"))
    return {int(process): int(who) for _, process, who in notes}


class Server:
    """Forks for every request; a program and the process that asked for it end together.

    The server ends with the process that started it, whose end of its standard input then closes.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._asking: dict[int, tuple[socket.socket, Path]] = {}  # by the forked process
        self._ended, self._ends = socket.socketpair()
        self._ends.setblocking(False)
        signal.set_wakeup_fd(self._ends.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> NoReturn:
        """Wait for requests and ends."""
        while True:
            connections = [connection for connection, _ in self._asking.values()]
            waiting = [sys.stdin, self._listening, self._ended, *connections]
            ready, _, _ = select.select(waiting, [], [])
            if sys.stdin in ready:
                sys.exit()
            if self._ended in ready:
                self._ended.recv(64)
                self._reap()
            if self._listening in ready:
                self._fork()
            for process, (connection, _) in self._asking.items():
                if connection in ready:  # it was killed: it has nothing else to say
                    os.kill(process, signal.SIGKILL)

    def _fork(self) -> None:
        connection, _ = self._listening.accept()
        size, streams, _, _ = socket.recv_fds(connection, 8, maxfds=3)
        try:
            request = json.loads(connection.recv(int(size), socket.MSG_WAITALL))
        except ValueError:  # who asked has ended meanwhile
            connection.close()
            return
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if process := os.fork():
            note = Path(f"{os.environ[SOCKET]}-{process}-{_PEER.unpack(peer)[0]}")
            note.touch()
            self._asking[process] = connection, note
            _tell(connection, process)
        else:
            mine = (self._listening, connection, self._ended, self._ends)
            for one in (*mine, *(other for other, _ in self._asking.values())):
                one.close()
            become(streams, **request)
        for stream in streams:
            os.close(stream)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                connection, note = self._asking.pop(found[0])
                note.unlink(missing_ok=True)
                _tell(connection, os.waitstatus_to_exitcode(found[1]))
                connection.close()


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.send(NUMBER.pack(number))


def become(
    streams: list[int], arguments: list[str], environment: dict[str, str], folder: str
) -> NoReturn:
    """Run a program in this process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, standard in zip(streams, (0, 1, 2), strict=True):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        _run(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as an interpreter does)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _run(arguments: list[str]) -> None:
    if arguments[0] != "-m":
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        return
    from tests.integration.rays import small_ray

    sys.argv, path = arguments[1:], list(sys.path)
    with small_ray():
        sys.path[:] = path  # without what Ray adds when it is imported
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def main() -> None:
    """Import, then serve."""
    collect_env, conversion_mapping, *modules = [importlib.import_module(name) for name in _IMPORTS]
    modules[-1].__dict__["INTERPRETER"] = (sys.executable, asker.__file__)  # of drivers
    collect_env.__dict__["get_pretty_env_info"] = str  # lm-eval has pip list what is installed
    os.fsync = lambda fd: None  # as in the tests themselves
    runpy.run_path = writing.run_path
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # it compiles those of every kind
    gc.freeze()  # what is here has not to be looked at, and so copied, in every process
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
