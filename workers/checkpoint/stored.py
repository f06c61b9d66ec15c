"""A checkpoint in an object store, read from here: no large weight is copied to disk unasked."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from schemas.errors import CheckpointError, ConfigError
from schemas.location import Location, Url
from workers.checkpoint.headers import read_header
from workers.storage.places import at_once, download, names_in, read_into, size_of

UNASKED = 10**9  # bytes that a check may write to the temporary folder (TMPDIR) unasked
_PART = 2**25  # bytes of a request


@contextlib.contextmanager
def at_hand(
    place: Location, weights: Mapping[str, Url] | None = None, work_dir: Path | None = None
) -> Iterator[tuple[Path, Mapping[str, Url]]]:
    """Give a folder for a checkpoint, and the weights that stay in the store; `weights` are those
    stored elsewhere than at `place`.

    A folder is used as it is. A URL gets a temporary folder below `work_dir`, with every file. If
    no `work_dir` is named, the folder is in TMPDIR, and weights above UNASKED stay in the store:
    sparse local files of the right size hold their headers. Raises CheckpointError if the URL has
    no files, ConfigError if `work_dir` does not exist.
    """
    if isinstance(place, Path):
        yield place, {}
        return
    if work_dir is not None and not work_dir.is_dir():
        raise ConfigError(f"work_dir {work_dir}: no such folder; create it or name another")
    files = {name: place / name for name in names_in(place)} | dict(weights or {})
    if not files:
        raise CheckpointError(f"{place}: no file there; check the URL and the credentials")
    stay = {name: file for name, file in files.items() if name.endswith(".safetensors")}
    if work_dir is not None or sum(map(size_of, stay.values())) <= UNASKED:
        stay = {}
    with tempfile.TemporaryDirectory(prefix="svdllm-", dir=work_dir) as temporary:
        folder = Path(temporary)
        download({name: file for name, file in files.items() if name not in stay}, folder)
        for name, file in stay.items():
            _outline(file, folder / name)
        yield folder, stay


def stored_sha256(places: Mapping[str, Url]) -> dict[str, str]:
    """Return SHA-256 of stored files by name, several at a time, never a whole file in memory."""
    return dict(zip(places, at_once(_sha256, places.values()), strict=True))


def _sha256(place: Url) -> str:
    digest, size, buffer = hashlib.sha256(), size_of(place), memoryview(bytearray(_PART))
    for start in range(0, size, _PART):
        part = buffer[: size - start]
        read_into(place, start, part)
        digest.update(part)
    return digest.hexdigest()


def _outline(place: Url, path: Path) -> None:
    """Write a local file with a stored file's header and size, but sparse instead of content."""
    starts = [spec.offset for spec in read_header(place) if spec.offset is not None]
    size = size_of(place)
    header = bytearray(min(starts, default=size))
    read_into(place, 0, memoryview(header))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
