"""The log of this program in every process: lines for people, or JSON lines.

The environment chooses, so that a Ray job and the workers of an embedded Ray follow it, too.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from schemas.printable import printable

LogFormat = Literal["text", "json"]
LOG_FORMAT = "SVDLLM_LOG_FORMAT"
FIELDS = ("run", "stage", "layer", "matrix")

log = logging.getLogger("svdllm")
_SECRET_NAMES = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|KEY|KEY_ID)$")
_SHORTEST_SECRET = 8
_LAYER = re.compile(r"\.(\d+)\.")  # layers.3., h.3., blocks.3.
_about: ContextVar[Mapping[str, str | int]] = ContextVar("about")


def set_up_logging() -> None:
    """Log to standard error; text gets the time if that is not a terminal."""
    terminal = sys.stderr.isatty()
    text = _Line("%(message)s" if terminal else "%(asctime)s %(levelname)s %(message)s")
    handler = _Handler()
    handler.setFormatter(_Json("%(message)s") if as_json() else text)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def as_json() -> bool:
    """Whether the environment asks for JSON."""
    return os.environ.get(LOG_FORMAT) == "json"


def now_about(**fields: str | int) -> None:
    """Set what every later line of this thread is about: some of FIELDS."""
    _about.set({**_about.get({}), **fields})


@contextlib.contextmanager
def about(**fields: str | int) -> Iterator[None]:
    """Do the same for the lines in its body only."""
    token = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def about_matrices(names: Collection[str]) -> contextlib.AbstractContextManager[None]:
    """Mark lines about some matrices: with the matrix if it is one, the layer if they share it."""
    layers = {found[1] for name in names if (found := _LAYER.search(name))}
    fields: dict[str, str | int] = {"layer": int(next(iter(layers)))} if len(layers) == 1 else {}
    return about(**fields, **({"matrix": next(iter(names))} if len(names) == 1 else {}))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now: a live bar stands for it while it is there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Line(logging.Formatter):
    """One printable line per record, without the secrets in the environment."""

    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


class _Json(logging.Formatter):
    """One JSON object per record: time (UTC), level, message, and the FIELDS that are known."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        known = _about.get({})
        found: dict[str, str | int] = {
            "time": time,
            "level": record.levelname,
            "message": super().format(record),
            **{name: known[name] for name in FIELDS if name in known},
        }
        shown = {key: _shown(v) if isinstance(v, str) else v for key, v in found.items()}
        return json.dumps(shown)


def _shown(text: str) -> str:
    found = (v.strip() for name, v in os.environ.items() if _SECRET_NAMES.search(name))
    secrets = {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "***")
    return printable(text)  # last: it cuts long lines, and would leave half a secret
