"""Files of a checkpoint folder: plain, inside the folder, and small if they are read whole."""

import os
import stat
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from schemas.errors import CheckpointError
from schemas.location import Location
from workers.storage.places import read_bytes, size_of

# Files that are read from a checkpoint, or fetched from the hub.
WANTED = (
    "*.json",
    "*.safetensors",
    "*.py",
    "tokenizer*",
    "*.model",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
_LARGEST = 100 * 10**6  # bytes of a file that is read whole


def is_wanted(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint."""
    return any(fnmatch(name, pattern) for pattern in WANTED)


def require_contained(folder: Path) -> None:
    """Raises CheckpointError if a file leads out of its checkpoint's folder, or is not a file.

    A snapshot of the hub is a folder of links to the blobs beside it, which belong to it.
    """
    folder = folder.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    for path in sorted(path for path in folder.iterdir() if is_wanted(path.name)):
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if not any(root in target.parents for root in roots):
                raise CheckpointError(
                    f"{path}: a link that leads out of the folder, to {target}; copy the file "
                    "into the folder, or name the folder that holds it as the model"
                )
        require_plain(path)


def require_plain(path: Location) -> None:
    """Raises CheckpointError if a path exists and is neither a file nor a folder."""
    if not isinstance(path, Path):
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(
                f"{path}: a link to a file that is not there; fetch the checkpoint again"
            ) from None
        return
    except OSError as error:
        raise unreadable(path, error) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path}: not a plain file; put the file itself there")


def read_small(place: Location) -> bytes:
    """Read a whole file. Raises FileNotFoundError if there is none, CheckpointError if it is not a
    plain file, cannot be read or is far too large.
    """
    require_plain(place)
    try:
        if (size := size_of(place)) > _LARGEST:
            raise CheckpointError(
                f"{place}: {size:,} bytes, where {_LARGEST:,} are the most; fetch it again"
            )
        return read_bytes(place)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(place)) from None
    except OSError as error:
        raise unreadable(place, error) from error


def require_file_name(name: object, where: Path) -> str:
    """Check the name of a weight file that an index gives: it must be in the index's folder."""
    if (
        not isinstance(name, str)
        or not name.endswith(".safetensors")
        or name != PurePosixPath(name).name
        or "\\" in name
        or not name.isprintable()
        or len(name.encode()) > 255
    ):
        raise CheckpointError(
            f"{where}: names the file {name!r}, which is no .safetensors file of this folder; "
            "fetch the index again"
        )
    return name


def unreadable(place: Location, error: OSError) -> CheckpointError:
    """Return the error for a file that the system cannot read."""
    return CheckpointError(
        f"{place}: cannot be read ({error.strerror or error}); check its path and permissions"
    )
