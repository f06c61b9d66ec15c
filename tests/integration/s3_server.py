"""A real S3 server (moto's) in a process of its own, which writes down what is asked of it.

python -m tests.integration.s3_server LISTENING_SOCKET LOG
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


def serve(listening: int, log: Path) -> None:
    """Serve until the process is ended; the log has a line of JSON for every request."""
    moto = DomainDispatcherApplication(create_backend_app)

    def logged(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        request = [environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE")]
        with log.open("a") as file:
            file.write(json.dumps(request) + "\n")
        answer: Iterable[bytes] = moto(environ, start)
        return answer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    make_server("127.0.0.1", 0, logged, threaded=True, fd=listening).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
