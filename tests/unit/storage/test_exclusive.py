"""A file is created once; a writer whose answer was lost finds its own, and is not the slower."""

import errno
import os
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from schemas.location import Location, Url
from workers.storage.places import create, read_bytes
from workers.storage.store import Store


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, url: Url) -> Location:
    """A folder, or a prefix in a store."""
    return tmp_path if request.param == "file" else url


@pytest.fixture
def lost(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """What creates a file makes it, hears nothing, asks again, and hears that it is there."""
    store = fsspec.get_filesystem_class("memory")
    owner, name = (store, "pipe_file") if isinstance(place, Url) else (os, "link")
    make_and_fail(owner, name, errno.EEXIST, monkeypatch)


def make_and_fail(owner: Any, name: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what makes a file raise an OSError afterwards, of the class of its number."""
    made = getattr(owner, name)

    def make(*arguments: object, **settings: object) -> None:
        made(*arguments, **settings)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(owner, name, make)


@pytest.mark.parametrize("content", [b"one", b""])
def test_what_is_there_is_not_created_again(content: bytes, place: Location) -> None:
    assert create(place / "file", content)
    assert not create(place / "file", b"two" if content else b"")
    assert read_bytes(place / "file") == content


@pytest.mark.usefixtures("lost")
def test_its_own_file_is_created(place: Location) -> None:
    assert create(place / "file", b"one")
    assert read_bytes(place / "file") == b"one"


@pytest.mark.usefixtures("lost")
def test_its_own_item_stays_whole(place: Location) -> None:
    store = Store(place)
    store.commit("moments/one.safetensors", [], {"tokens": 7})
    assert store.load("moments/one.safetensors").facts == {"tokens": 7}


def test_a_folder_whose_answer_is_lost_keeps_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount may give up, and ask nothing again."""
    make_and_fail(os, "link", errno.EIO, monkeypatch)
    test_its_own_item_stays_whole(tmp_path)
