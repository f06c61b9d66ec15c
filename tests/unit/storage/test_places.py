"""Checkpoints and files in a store (one in memory), and every way in which a store can fail."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import load_file

from pipeline.stages.publish import publish_to_store
from schemas.errors import CheckpointError, ConfigError, StorageError, StorageFullError
from schemas.location import Url
from schemas.result.manifest import FileEntry, Manifest
from schemas.run.identity import Identities
from workers.checkpoint.contents import base_files
from workers.checkpoint.fetching import resolve
from workers.checkpoint.published import is_published, read_manifest, require_free
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect
from workers.process.failures import storage_explained
from workers.storage import places
from workers.storage.files import file_sha256
from workers.storage.places import download


def put(folder: Path, url: Url) -> Url:
    for path in folder.iterdir():
        places.upload(path, url / path.name)
    return url


# --- a base checkpoint ------------------------------------------------------------------------


def test_small_files_are_fetched_once_and_no_weights(model: Path, url: Url, tmp_path: Path) -> None:
    folder = resolve(put(model, url), None, tmp_path / "fetched")
    expected = {path.name for path in model.iterdir()} - {"model.safetensors"}
    assert {path.name for path in folder.iterdir()} == expected
    before = (folder / "config.json").stat().st_mtime_ns
    assert resolve(url, None, tmp_path / "fetched") == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert list((tmp_path / "fetched").iterdir()) == [folder]


def test_a_changed_base_is_another_folder(model: Path, url: Url, tmp_path: Path) -> None:
    folder = resolve(put(model, url), None, tmp_path)
    places.upload(model / "model.safetensors", url / "model.safetensors")
    assert resolve(url, None, tmp_path) != folder


def test_a_base_that_goes_while_it_is_fetched_leaves_nothing(
    model: Path, url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError("tokenizer.json")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "get_file", gone)
    with pytest.raises(FileNotFoundError):
        resolve(put(model, url), None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensors_are_those_of_the_files(model: Path, url: Url, tmp_path: Path) -> None:
    folder = resolve(put(model, url), None, tmp_path)
    spec = inspect(folder, url)
    local = inspect(model)
    assert spec.model_copy(update={"weights": None}) == local
    reader = TensorReader(folder, spec)
    for name, tensor in load_file(model / "model.safetensors").items():
        assert torch.equal(reader.read(name), tensor)


def test_weights_are_identified_without_a_read(model: Path, url: Url, tmp_path: Path) -> None:
    folder = resolve(put(model, url), None, tmp_path)
    found = base_files(folder, inspect(folder, url))
    assert found["config.json"] == file_sha256(model / "config.json")
    assert re.fullmatch(r"ukey:\w+ \d+", found["model.safetensors"])


@pytest.mark.parametrize(
    ("info", "identity"),
    [
        ({"ETag": '"abc-2"', "size": 7}, "etag:abc-2 7"),
        ({"etag": "x", "generation": "12", "size": 7}, "generation:12 7"),
    ],
)
def test_a_store_has_its_own_identity_of_a_file(
    info: dict[str, object], identity: str, url: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", lambda *_: info)
    assert places.identity_of(url) == identity


# --- what is refused --------------------------------------------------------------------------


def test_nothing_there_is_refused(url: Url, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file there; check the URL"):
        resolve(url, None, tmp_path)


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="use s3:// or gs://"):
        resolve("carrier-pigeon://bucket/base", None, tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(CheckpointError, match=r"Install s3fs.*pip install 'svdllm\[s3\]'"):
        resolve("s3://bucket/base", None, tmp_path)


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), TimeoutError("30 s")])
def test_a_failing_store_is_one_sentence(
    error: OSError, url: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", fail)
    with pytest.raises(StorageError, match=rf"{url}.*{error}.*check bucket, credentials"):
        resolve(url, None, tmp_path)


def test_a_bucket_that_is_not_there_is_named_by_who_writes(
    url: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader takes it for a file that is not there."""

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    store = fsspec.get_filesystem_class("memory")
    for name in ("pipe_file", "put_file"):
        monkeypatch.setattr(store, name, fail)
    (tmp_path / "a").touch()
    for write in (
        lambda: places.write(url / "a", b"a"),
        lambda: places.create(url / "a", b"a"),
        lambda: places.upload(tmp_path / "a", url / "a"),
    ):
        with pytest.raises(StorageError, match=rf"{url / 'a'}: .*bucket does not exist"):
            write()


def test_markers_of_folders_are_no_files(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    """As consoles make them."""
    places.write(url / "run/file", b"abc")
    store = fsspec.get_filesystem_class("memory")
    ordinary = store.find

    def find(self: object, path: str, **how: object) -> dict[str, dict[str, int]]:
        return {f"{path}/": {"size": 0}, f"{path}/sub/": {"size": 0}, **ordinary(self, path, **how)}

    monkeypatch.setattr(store, "find", find)
    assert places.files_below(url / "run") == {"file": 3}


def test_a_full_disk_of_a_local_copy_is_not_the_stores_fault(
    url: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "get_file", fill)
    with (
        pytest.raises(StorageFullError, match=rf"{tmp_path / 'a'}: No space left on device"),
        storage_explained("upload", tmp_path),
    ):
        download({"a": url / "config.json"}, tmp_path)


def test_what_a_failing_store_does_not_tell_is_not_absent(
    url: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    places.write(url / "file", b"")
    assert [places.exists(place) for place in (url / "file", url, url / "no")] == [
        True,
        False,
        False,
    ]
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", fail)
    with pytest.raises(StorageError, match="the store did not do it"):
        places.exists(url / "file")


def test_a_file_that_shrank_is_refused(model: Path, url: Url, tmp_path: Path) -> None:
    folder = resolve(put(model, url), None, tmp_path)
    spec = inspect(folder, url)
    short = tmp_path / "short"
    short.write_bytes((model / "model.safetensors").read_bytes()[:-100])
    places.upload(short, url / "model.safetensors")
    last = max(spec.tensors, key=lambda tensor: tensor.offset or 0)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends after"):
        TensorReader(folder, spec).read(last.name)


# --- an output --------------------------------------------------------------------------------


class Copy:
    """Publishes a staged folder; `sent` are the weights that it was asked to send."""

    def __init__(self, staging: Path, url: Url) -> None:
        self.staging, self.url = staging, url
        self.sent: set[str] = set()

    def __call__(self, identity: str = "mine", before: Callable[[], None] = lambda: None) -> None:
        def send(names: set[str]) -> None:
            before()
            for name in names:
                places.upload(self.staging / name, self.url / name)
            self.sent |= names

        publish_to_store(self.staging, self.url, identity, {"model.safetensors"}, send)


@pytest.fixture
def copy(url: Url, tmp_path: Path) -> Copy:
    staging = tmp_path / "staging"
    staging.mkdir()
    for name in ("config.json", "model.safetensors"):
        (staging / name).write_text(name)
    ids = Identities(forward="f", backward=None, bases="b", factors="f")
    files = {path.name: FileEntry(sha256="of this driver's", bytes=1) for path in staging.iterdir()}
    manifest = Manifest(output="mine", identities=ids, base_files={}, versions={}, files=files)
    (staging / "manifest.json").write_text(manifest.model_dump_json())
    return Copy(staging, url)


def test_everything_is_published_and_the_claim_goes(copy: Copy) -> None:
    copy()
    names = {"config.json", "manifest.json", "model.safetensors", "_SUCCESS"}
    assert set(places.names_in(copy.url)) == names
    assert places.read_bytes(copy.url / "config.json") == b"config.json"
    require_free(copy.url)
    assert is_published(copy.url, "mine")


def test_a_stopped_publication_counts_for_nothing_and_continues(copy: Copy) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(before=stop)
    assert not is_published(copy.url, "mine")
    require_free(copy.url)
    with pytest.raises(ConfigError, match=r"another run .mine [0-9a-f]{16}. is publishing there"):
        copy("other")
    manifest = copy.staging / "manifest.json"
    ours = manifest.read_text()
    manifest.write_text(ours.replace("of this driver's", "of weights that were computed again"))
    with pytest.raises(ConfigError, match="remove what is there"):
        copy()
    manifest.write_text(ours)
    copy()
    assert "_PUBLISHING" not in places.names_in(copy.url)


def test_what_another_driver_of_the_run_has_published_stays(copy: Copy) -> None:
    """However late: each file is the first that came, and the manifest describes these files."""

    def faster() -> None:
        places.write(copy.url / "config.json", b"of the other driver")

    copy(before=faster)
    assert places.read_bytes(copy.url / "config.json") == b"of the other driver"
    manifest = read_manifest(copy.url)
    assert manifest.files["config.json"].bytes == len(b"of the other driver")
    assert manifest.files["model.safetensors"].sha256 == "of this driver's"
    published = {name: places.read_bytes(copy.url / name) for name in places.names_in(copy.url)}
    (copy.staging / "config.json").write_text("changed")
    places.remove(copy.url / "_SUCCESS")  # as the slower one sees it: it looked before
    copy()
    assert {name: places.read_bytes(copy.url / name) for name in published} == published
    assert set(places.names_in(copy.url)) == published.keys()


def test_files_of_others_are_not_touched(copy: Copy) -> None:
    places.create(copy.url / "thesis.tex", b"years of work")
    with pytest.raises(ConfigError, match="is no finished checkpoint of this program"):
        require_free(copy.url)


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_what_is_removed_is_below_that_very_name(name: str, url: Url) -> None:
    for folder in (name, "run1", "run1/deep"):
        places.write(url / folder / "records" / "one.json", b"{}")
    places.remove_below(url / name)
    assert places.files_below(url) == {"run1/deep/records/one.json": 2, "run1/records/one.json": 2}
