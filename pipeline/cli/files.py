"""Files that a command writes beside what it prints."""

import os
from pathlib import Path

from pipeline.request.places import require_writable
from schemas.errors import ConfigError


def require_files(*files: Path | None) -> None:
    """Raises ConfigError if one of them cannot be written: known before the work, not after it."""
    for file in filter(None, files):
        if file.is_dir():
            raise ConfigError(f"{file}: a folder; name a file")
        if not file.exists():
            require_writable(file.absolute())
        elif not os.access(file, os.W_OK):  # /dev/stdout may be written, /dev may not
            raise ConfigError(f"{file}: no permission to write it; change it, or name another")


def write_file(file: Path, text: str) -> None:
    """Write a file and the folders that it is in; in place, as it may be /dev/stdout."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
