"""Processes that are forked from one that has imported torch and transformers already.

Importing them takes four seconds, and the tests start some hundred workers and checks of a load.
The Ray of the tests' own process, and `verify` in its workers, start this file instead. It hands
its arguments, environment, folder and output to a server, whose fork runs the program that was
meant, and waits for its end. Such a program finds this project among its modules, where a load
check should have none of it, and runs no exit handlers. Commands that the tests start, and the unit
tests of `verify`, know nothing of it.

Run as `python -m tests.integration.warm`, it is the server.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_SOCKET = "WARM_SOCKET"
# Ray is not among them: it reads the settings of a worker when it is imported.
_IMPORTS = ("workers.compressor", "workers.evaluation.scoring", "workers.checkpoint.verify")
_CONTEXT = "--serialized-runtime-env-context="


@contextlib.contextmanager
def server(folder: Path) -> Iterator[None]:
    """A server that is ready, with its socket in a folder whose path is short."""
    os.environ[_SOCKET] = str(folder / "warm")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.warm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        del os.environ[_SOCKET]
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def warm_workers() -> Iterator[None]:
    """A Ray that is started meanwhile has such workers for as long as it lives."""
    from ray._private.parameter import RayParams

    ordinary = RayParams.__init__

    def with_warm_workers(self: Any, *args: Any, **kwargs: Any) -> None:
        ordinary(self, *args, **{"setup_worker_path": __file__, **kwargs})

    RayParams.__init__ = with_warm_workers  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayParams.__init__ = ordinary  # type: ignore[method-assign]


class Server:
    """Forks for every request; a program and the process that asked for it end together.

    The server ends with the process that started it, whose end of its standard input then closes.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._asking: dict[int, socket.socket] = {}  # by the process that was forked for it
        self._ended, self._ends = socket.socketpair()
        self._ends.setblocking(False)
        signal.set_wakeup_fd(self._ends.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> NoReturn:
        """Wait for requests and ends."""
        while True:
            waiting = [sys.stdin, self._listening, self._ended, *self._asking.values()]
            ready, _, _ = select.select(waiting, [], [])
            if sys.stdin in ready:
                sys.exit()
            if self._ended in ready:
                self._ended.recv(64)
                self._reap()
            if self._listening in ready:
                self._fork()
            for process, connection in self._asking.items():
                if connection in ready:  # it was killed: it has nothing else to say
                    os.kill(process, signal.SIGKILL)

    def _fork(self) -> None:
        connection, _ = self._listening.accept()
        size, outputs, _, _ = socket.recv_fds(connection, 8, maxfds=2)
        try:
            request = json.loads(connection.recv(int(size), socket.MSG_WAITALL))
        except ValueError:  # who asked has ended meanwhile
            connection.close()
            return
        if process := os.fork():
            self._asking[process] = connection
        else:
            mine = (self._listening, connection, self._ended, self._ends)
            for one in (*mine, *self._asking.values()):
                one.close()
            become(outputs, **request)
        for output in outputs:
            os.close(output)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._asking.pop(found[0])
                with contextlib.suppress(BrokenPipeError):
                    connection.send(bytes([os.waitstatus_to_exitcode(found[1]) % 256]))
                connection.close()


def become(
    outputs: list[int], arguments: list[str], environment: dict[str, str], folder: str
) -> NoReturn:
    """Run a program in this process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for output, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(output, standard)
        os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    code = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 (as an interpreter does)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ask(arguments: list[str]) -> int:
    """Have a program run, and return its exit code; -9 % 256 if it is killed."""
    contexts = [json.loads(one.removeprefix(_CONTEXT)) for one in arguments if _CONTEXT in one]
    for context in contexts:  # Ray's, of a worker
        os.environ.update(context["env_vars"])
    program = [one for one in arguments if not one.startswith((_CONTEXT, "--language="))]
    request = {"arguments": program, "environment": dict(os.environ), "folder": str(Path.cwd())}
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[_SOCKET])
        socket.send_fds(connection, [b"%8d" % len(content)], [1, 2])
        connection.sendall(content)
        return (connection.recv(1) or b"\1")[0]


def main() -> None:
    """Serve, or ask for the program that the arguments name."""
    if sys.argv[1:]:
        sys.exit(ask(sys.argv[1:]))
    modules = [importlib.import_module(name) for name in _IMPORTS]
    modules[-1].__dict__["INTERPRETER"] = (sys.executable, __file__)  # for the workers
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.environ[_SOCKET])
        listening.listen()
        print("listening", flush=True)
        Server(listening).serve()


if __name__ == "__main__":
    main()
