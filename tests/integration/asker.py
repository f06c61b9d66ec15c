"""Asks the server of warm.py for a program; it starts some thousand times, so it imports little.

Run as `python asker.py ARGUMENTS`, it stands for an interpreter: the program has its arguments,
environment, folder and streams, and it waits for the end.
"""

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

SOCKET = "WARM_SOCKET"
NUMBER = struct.Struct("i")
_CONTEXT = "--serialized-runtime-env-context="


def send(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str, streams: Sequence[int]
) -> socket.socket:
    """Ask for a program; the server tells the number of its process, then its exit code."""
    request = {"arguments": arguments, "environment": dict(environment), "folder": folder}
    content = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(environment[SOCKET])
    socket.send_fds(connection, [b"%8d" % len(content)], streams)
    connection.sendall(content)
    return connection


def receive(connection: socket.socket) -> int:
    """A number from the server, 1 if that has ended."""
    found = connection.recv(NUMBER.size, socket.MSG_WAITALL)
    return int(NUMBER.unpack(found)[0]) if found else 1


def main(arguments: list[str]) -> int:
    """Have a program run, and return its exit code."""
    contexts = [json.loads(one.removeprefix(_CONTEXT)) for one in arguments if _CONTEXT in one]
    for context in contexts:  # Ray's, of a worker
        os.environ.update(context["env_vars"])
    program = [one for one in arguments if not one.startswith((_CONTEXT, "--language="))]
    folder = os.getcwd()  # noqa: PTH109 (pathlib is one more import)
    with send(program, os.environ, folder, (0, 1, 2)) as connection:
        receive(connection)
        return receive(connection) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
