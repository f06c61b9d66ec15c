"""Files by place: below a folder, or in an object store, through fsspec.

Nothing is cached: a range is one request. The file systems retry most passing failures themselves
(s3fs and gcsfs five times and more, waiting longer each time), but not a large one that breaks off.
Credentials and endpoints come from the environment, as each store's own client reads them.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec  # type: ignore[import-untyped]

from schemas.errors import STORAGE_FULL, CheckpointError, ConfigError, RunError, StorageError
from schemas.location import Location, Url, locate
from workers.storage.files import create_bytes, write_bytes

T = TypeVar("T")
R = TypeVar("R")

_IN_FLIGHT = 8  # requests at a time, per process
# Errors of the clients that are not OSErrors, by module; a module not loaded has raised none.
_FAILURES = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
}
_IDENTITIES = ("generation", "ETag", "etag")


def at_once(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return the results of a call on every item, in order, with several of them under way."""
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        return list(pool.map(call, items))


def place_of(name: str) -> Location:
    """Return the folder or URL that a person named. Raises ConfigError if it is neither."""
    try:
        return locate(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def url_of(model: str) -> Url | None:
    """Return a checkpoint's URL if it is in an object store; None for a path or a hub id."""
    place = place_of(model)
    return place if isinstance(place, Url) else None


def exists(place: Location) -> bool:
    """Whether the file exists."""
    if isinstance(place, Path):
        return place.is_file()
    with contextlib.suppress(FileNotFoundError):
        return bool(_info(place)["type"] == "file")
    return False


def size_of(place: Location) -> int:
    """Return the bytes of a file. Raises FileNotFoundError if there is none."""
    return place.stat().st_size if isinstance(place, Path) else int(_info(place)["size"])


def read_bytes(place: Location) -> bytes:
    """Read a small file. Raises FileNotFoundError if there is none."""
    if isinstance(place, Path):
        return place.read_bytes()
    with _opened(place) as (system, path):
        return bytes(system.cat_file(path))


def read_into(place: Location, start: int, buffer: memoryview) -> None:
    """Fill `buffer` with the bytes of a file from `start` on.

    Raises FileNotFoundError if it is absent, CheckpointError if it is too short.
    """
    size = buffer.nbytes
    if not size:
        return
    if isinstance(place, Path):
        with place.open("rb") as file:
            file.seek(start)
            found = file.readinto(buffer)
    else:
        with _opened(place) as (system, path):
            content = system.cat_file(path, start=start, end=start + size)
        found = len(content)
        buffer[:found] = content
    if found < size:
        raise CheckpointError(
            f"{place}: ends after {found} of the {size} bytes from {start} on; it is not complete "
            "or was replaced: put the whole file there, then start again"
        )


def names_in(place: Location) -> list[str]:
    """Return the names of files directly in a folder, or below a prefix; none if that is absent."""
    return _names(place, "file")


def folders_in(place: Location) -> list[str]:
    """Return the names of folders directly in a folder or below a prefix; none if it is absent."""
    return _names(place, "directory")


def identity_of(place: Url) -> str:
    """Return what changes with the content of a stored file: generation, or ETag, and size.

    No content is read. If a store has neither, its file system's own version key is used.
    """
    info = _info(place)
    for name in _IDENTITIES:
        if value := str(info.get(name) or "").strip('"'):
            return f"{name.lower()}:{value} {info['size']}"
    with _opened(place) as (system, path):
        return f"ukey:{system.ukey(path)} {info['size']}"


def download(files: Mapping[str, Url], folder: Path) -> None:
    """Download files into an existing folder, each under its key. Raises OSError, which names the
    local file, if the disk is full.
    """

    def one(name: str) -> None:
        with _opened(files[name]) as (system, path):
            try:
                system.get_file(path, str(folder / name))
            except OSError as error:
                error.filename = error.filename or str(folder / name)
                raise

    at_once(one, files)


def upload(path: Path, place: Url, mode: Literal["overwrite", "create"] = "overwrite") -> None:
    """Upload a local file, in parts if it is large; it appears only once it is complete.

    With mode "create" an existing file stays. Raises RunError if the stored size differs.
    """
    with _opened(place, writes=True) as (system, name), contextlib.suppress(FileExistsError):
        system.put_file(str(path), name, mode=mode)
    if (there := size_of(place)) != (size := path.stat().st_size):
        raise RunError(f"{place}: {there} bytes arrived of {size}; start the same command again")


def transfer(source: Location, place: Url) -> None:
    """Copy a file into an object store unless it exists there.

    A copy from one object store to another goes through a temporary file.
    """
    if exists(place):
        return
    if isinstance(source, Path):
        upload(source, place, mode="create")
        return
    with tempfile.TemporaryDirectory(prefix="svdllm-") as name:
        download({source.name: source}, Path(name))
        upload(Path(name) / source.name, place, mode="create")


def write(place: Location, content: bytes) -> None:
    """Write a small file, replacing any that exists."""
    if isinstance(place, Path):
        write_bytes(place, content)
        return
    with _opened(place, writes=True) as (system, path):
        system.pipe_file(path, content)


def create(place: Location, content: bytes) -> bool:
    """Write a small file if it does not exist; False if it does.

    A hard link on a file system, one conditional request (If-None-Match: *) with s3fs; file systems
    with neither get a check, then a write. In a store equal content, unless empty, is its own.
    """
    if isinstance(place, Path):
        return create_bytes(place, content)
    with _opened(place, writes=True) as (system, path):
        try:
            system.pipe_file(path, content, mode="create")
            return True
        except FileExistsError:  # its own, if the answer was lost and the client has asked again
            with contextlib.suppress(FileNotFoundError):
                return bool(content) and bool(system.cat_file(path) == content)
    return False


def remove(place: Location) -> None:
    """Remove a file, if it exists."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with _opened(place) as (system, path), contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


def files_below(place: Location) -> dict[str, int]:
    """Return the bytes of every file below a folder or prefix, at any depth, by relative name."""
    if isinstance(place, Path):
        return dict(sorted(_walk(place)))
    with _opened(place) as (system, path):
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            return {}
    start = len(path.rstrip("/")) + 1
    files = {path: entry for path, entry in found.items() if not path.endswith("/")}  # no markers
    return {path[start:]: int(entry["size"]) for path, entry in sorted(files.items())}


def remove_below(place: Location) -> None:
    """Remove every file below a folder or prefix; by name, because a store's rm takes patterns."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
        return
    at_once(lambda name: remove(place / name), files_below(place))


def _names(place: Location, kind: Literal["file", "directory"]) -> list[str]:
    if isinstance(place, Path):
        there = place.iterdir() if place.is_dir() else ()
        return sorted(p.name for p in there if (p.is_file() if kind == "file" else p.is_dir()))
    with _opened(place) as (system, path):
        try:
            found = system.ls(path, detail=True)
        except FileNotFoundError:
            return []
    paths = [str(entry["name"]) for entry in found if entry["type"] == kind]
    if kind == "directory":
        paths = [path.rstrip("/") for path in paths]
    # Some tools leave an object named "prefix/": below the prefix it has no name.
    return sorted(filter(None, (Url(path).name for path in paths)))


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield names and sizes; files removed meanwhile are left out."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def _info(place: Url) -> dict[str, Any]:
    with _opened(place) as (system, path):
        found: dict[str, Any] = system.info(path)
    return found


@contextlib.contextmanager
def _opened(place: Url, writes: bool = False) -> Iterator[tuple[Any, str]]:
    """Give the file system, with its listing cache cleared (others write there, too), and a path.

    Raises CheckpointError if there is no such file system, StorageError if the store refuses or
    fails, or lacks the bucket that is written to; absence and existence errors pass.
    """
    try:
        system, path = fsspec.url_to_fs(str(place))
    except ImportError as error:
        extra = "gs" if place.startswith(("gs:", "gcs:")) else "s3"
        raise CheckpointError(
            f"{place}: {error}; pip install 'svdllm[{extra}]', on every node"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}; use s3:// or gs://") from None
    try:
        system.invalidate_cache()
        yield system, path
    except FileExistsError:
        raise
    except _failures() as error:
        if isinstance(error, FileNotFoundError) and not writes:
            raise
        if isinstance(error, OSError) and error.errno in STORAGE_FULL:
            raise  # the disk of a local copy, not the store
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise StorageError(
            f"{place}: the store did not do it ({why[0]}); check bucket, credentials, endpoint and "
            "network (the environment must reach every node), then start again"
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    found = [
        getattr(sys.modules[module], name)
        for module, names in _FAILURES.items()
        if module in sys.modules
        for name in names
    ]
    return (OSError, *found)
