"""A tiny model, a text, a store in memory, and a log that no test leaves changed.

Who starts the processes of xdist may read this file, too, and runs no test: fixtures import what
takes seconds.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.location import Url
from tests.prose import prose
from workers.process.logs import log


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that stays as it is."""
    from tests.models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(model, tmp_path / "base"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English prose, which stays as it is."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose(4_000))
    return path


@pytest.fixture
def url() -> Url:
    """A prefix of its own in the store that lives in this process."""
    return Url(f"memory://{uuid4().hex}/prefix")


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """What the program logs is seen, even if another test has set the log up."""
    handlers, level = log.handlers, log.level
    log.propagate = True
    yield
    log.handlers, log.propagate = handlers, True
    log.setLevel(level)
