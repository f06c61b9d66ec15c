"""Places that can be written to, and that do not lie in what is read."""

import os
from pathlib import Path

from schemas.errors import ConfigError
from schemas.location import Location, is_within


def require_writable(folder: Path) -> None:
    """Raises ConfigError if a folder cannot be created, renamed or written to."""
    if "\0" in str(folder):
        raise ConfigError(f"{folder}: a path holds no NUL character; correct it")
    place = next(parent for parent in folder.parents if parent.exists())
    if not place.is_dir():
        raise ConfigError(f"{folder}: {place} is a file, not a folder; name another place")
    for there in (folder, place) if folder.is_dir() else (place,):
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{folder}: no permission to write in {there} (read-only, or of another user); "
                "change it, or name another place"
            )


def require_publishable(output: Path) -> None:
    """Raises ConfigError if no folder beside an output can be made and renamed to it."""
    require_writable(output)
    if output.is_symlink() or output.is_mount():
        raise ConfigError(
            f"output {output}: is a link or a mount point, to which nothing can be renamed; name a "
            "folder in it"
        )


def require_apart(output: Location, read: Location, what: str) -> None:
    """Raises ConfigError if an output is inside what is read, which stays as it is."""
    if is_inside(output, read):
        raise ConfigError(f"output {output} is inside the {what} {read}; name another folder")


def require_beside(output: Location, run: Location) -> None:
    """Raises ConfigError if an output is inside its run directory, or that inside the output."""
    if is_inside(output, run) or is_inside(run, output):
        raise ConfigError(
            f"output {output} and run_dir {run}: neither may be inside the other; name another "
            "--output or --run-dir"
        )


def is_inside(place: Location, base: Location) -> bool:
    """Whether a place is inside another, or that place itself, whatever links lead there."""
    one, other = (Path(os.path.realpath(p)) if isinstance(p, Path) else p for p in (place, base))
    return is_within(one, other)
