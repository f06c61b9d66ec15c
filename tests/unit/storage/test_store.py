"""An item of the run directory is there as a whole with its checksum, or it is not there."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.errors import StorageError
from schemas.run.identity import Record
from tests.items import file_of, local
from workers.storage.files import create_bytes, file_sha256, write_text
from workers.storage.places import files_below
from workers.storage.store import Store
from workers.storage.tensorfile import Entry, entries

KEY = "moments/0123/layers.0.mlp.input.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def commit(store: Store, key: str = KEY, value: float = 1.0) -> None:
    store.commit(key, entries({"moment": torch.full((5, 3), value)}), {"tokens": 7})


def files(store: Store) -> set[str]:
    return set(files_below(store.root))


def committed(store: Store) -> Record:
    """The record of the item."""
    found = store.record(KEY)
    assert found is not None
    return found


def record_of(store: Store) -> Path:
    """The file of the record."""
    return local(store.root / "records" / f"{KEY}.json")


def break_off() -> Iterator[Entry]:
    """Content whose second tensor cannot be had."""

    def fail() -> Tensor:
        raise RuntimeError("killed")

    yield Entry("a", torch.float32, (2,), lambda: torch.zeros(2))
    yield Entry("b", torch.float32, (2,), fail)


def test_what_is_committed_is_loaded(store: Store) -> None:
    tensors = {
        "moment": torch.randn(4, 4),
        "halves": torch.randn(3).bfloat16(),
        "order": torch.randperm(9),
        "trace": torch.tensor(2.5, dtype=torch.float64),
    }
    store.commit(KEY, entries(tensors), {"note": "größer", "list": [1, None, 2.5]})
    item = store.load(KEY)
    assert item.facts == {"note": "größer", "list": [1, None, 2.5]}
    assert item.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert item.tensors[name].dtype == tensor.dtype
        assert torch.equal(item.tensors[name], tensor)


def test_an_item_without_facts_or_tensors_is_an_item(store: Store) -> None:
    store.commit(KEY, [])
    assert store.load(KEY) == ({}, {})


def test_the_record_is_of_the_file(store: Store) -> None:
    commit(store)
    record = committed(store)
    assert record.key == KEY
    assert record.bytes == file_of(store, KEY).stat().st_size
    assert record.sha256 == file_sha256(file_of(store, KEY))
    assert record.facts == {"tokens": 7}


def test_an_item_is_a_plain_safetensors_file(store: Store) -> None:
    commit(store)
    assert torch.equal(load_file(file_of(store, KEY))["moment"], torch.ones(5, 3))


def test_nothing_but_the_item_and_its_record_is_left(store: Store) -> None:
    commit(store)
    assert files(store) == {committed(store).file, f"records/{KEY}.json"}


def test_another_store_of_the_same_folder_sees_it(store: Store) -> None:
    commit(store)
    assert torch.equal(Store(store.root).load(KEY).tensors["moment"], torch.ones(5, 3))


def test_a_second_commit_leaves_the_first_as_it_is(store: Store) -> None:
    commit(store, value=1.0)
    written = committed(store)
    commit(store, value=2.0)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.ones(5, 3))
    assert committed(store) == written


def test_of_two_that_make_an_item_at_once_one_wins(store: Store) -> None:
    """The slower one finds the other's, and leaves nothing."""

    def slow() -> Tensor:
        commit(Store(store.root), value=1.0)
        return torch.full((5, 3), 2.0)

    record = store.commit(KEY, [Entry("moment", torch.float32, (5, 3), slow)])
    assert record == committed(store)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.ones(5, 3))
    assert files(store) == {record.file, f"records/{KEY}.json"}


def test_what_wins_over_a_damaged_record_is_whole(store: Store) -> None:
    commit(store)
    record_of(store).write_text("{")
    commit(store, value=2.0)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.full((5, 3), 2.0))


def test_a_damaged_item_is_written_anew(store: Store) -> None:
    commit(store, value=1.0)
    content = file_of(store, KEY).read_bytes()
    file_of(store, KEY).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StorageError, match="SHA-256 differs"):
        store.load(KEY)
    commit(store, value=2.0)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.full((5, 3), 2.0))


def test_what_was_never_committed_is_not_there(store: Store) -> None:
    assert store.record(KEY) is None
    with pytest.raises(StorageError, match=r"layers\.0\.mlp\.input\.safetensors: not there"):
        store.load(KEY)


@pytest.mark.parametrize("position", [0, 8, 60, -1])
def test_one_changed_byte_is_found_and_the_item_dropped(store: Store, position: int) -> None:
    commit(store)
    content = bytearray(file_of(store, KEY).read_bytes())
    content[position] ^= 1
    file_of(store, KEY).write_bytes(content)
    with pytest.raises(StorageError, match=r"not what was written \(SHA-256 differs\)"):
        store.load(KEY)
    assert store.record(KEY) is None


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_file_does_not_count(store: Store, keep: int) -> None:
    commit(store)
    file_of(store, KEY).write_bytes(file_of(store, KEY).read_bytes()[:keep])
    assert store.record(KEY) is None
    assert list(store.records("moments")) == []
    with pytest.raises(StorageError, match="cut short"):
        store.load(KEY)


@pytest.mark.parametrize("damage", ["", '{"key": 1', '"tokens":8'])
def test_a_damaged_record_does_not_count(store: Store, damage: str) -> None:
    """Cut short, no record at all, or with another fact in it."""
    commit(store)
    path = record_of(store)
    text = path.read_text()
    assert '"tokens":7' in text
    path.write_text(text.replace('"tokens":7', damage) if "tokens" in damage else damage)
    assert store.record(KEY) is None


def test_a_file_without_its_record_does_not_count(store: Store) -> None:
    commit(store)
    record_of(store).unlink()
    assert store.record(KEY) is None


def test_a_record_without_its_file_does_not_count(store: Store) -> None:
    commit(store)
    file_of(store, KEY).unlink()
    assert store.record(KEY) is None


def test_an_interrupted_write_does_not_count(store: Store) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        store.commit(KEY, break_off())
    assert store.record(KEY) is None
    assert list(store.records("moments")) == []
    assert files(store) == set()
    commit(store)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.ones(5, 3))


def test_temporary_files_do_not_count(store: Store) -> None:
    """What a killed process leaves where items are, and beside a record."""
    commit(store)
    record = record_of(store)
    left = [
        store.root / Record.file_of(KEY, "0123456789ab"),
        record.with_name(f"{record.name}.0.tmp"),
    ]
    for path in map(local, left):
        path.write_bytes(b"half a file")
    assert [record.key for record in store.records("")] == [KEY]
    stranger = local(store.root / "moments" / "thesis.safetensors")
    stranger.write_bytes(b"years of work")
    store.sweep("moments")
    assert not local(left[0]).exists()
    assert stranger.exists()
    assert store.load(KEY).facts == {"tokens": 7}


def test_records_are_those_below_a_prefix_by_key(store: Store) -> None:
    keys = ["moments/a/2.safetensors", "moments/a/1.safetensors", "moments/b/1.safetensors"]
    for key in keys:
        commit(store, key)
    assert [record.key for record in store.records("moments/a")] == sorted(keys[:2])
    assert [record.key for record in store.records("moments")] == sorted(keys)
    assert list(store.records("bases")) == []


def test_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.json"
    write_text(path, "first")
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [found.name for found in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("links", [True, False])
def test_items_become_files_of_a_folder(
    store: Store, tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "folder"
    folder.mkdir()
    for _ in range(2):  # what is there stays
        store.place_files({"model.safetensors": KEY}, folder)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    placed = folder / "model.safetensors"
    assert placed.read_bytes() == file_of(store, KEY).read_bytes()
    assert placed.samefile(file_of(store, KEY)) == links
    assert store.load(KEY).facts == {"tokens": 7}


def refuse(*_: object) -> None:
    """A file system without hard links."""
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_record_is_created_where_there_are_no_links(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse)
    commit(store, value=1.0)
    assert torch.equal(store.load(KEY).tensors["moment"], torch.ones(5, 3))
    assert not create_bytes(record_of(store), b"another")
    assert store.load(KEY).facts == {"tokens": 7}
