"""Local files that survive a crash: written under another name, synced, then renamed or linked."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HASH_THREADS = 8


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of some files of a folder, several at a time."""
    with ThreadPoolExecutor(max_workers=HASH_THREADS) as pool:
        sums = pool.map(lambda name: file_sha256(folder / name), names)
        return dict(zip(names, sums, strict=True))


def write_text(path: Path, text: str) -> None:
    """Replace a small text file atomically and durably."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Do the same with JSON as people read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def copy(source: Path, path: Path) -> None:
    """Copy a small file, byte for byte, atomically and durably."""
    write_bytes(path, source.read_bytes())


def copy_folder(source: Path, folder: Path) -> None:
    """Copy the files of a folder, of any size, durably into a new one."""
    folder.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
        sync(folder / path.name)
    sync(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a small file atomically and durably."""
    with _written(path, content) as temporary:
        publish(temporary, path)


def create_bytes(path: Path, content: bytes) -> bool:
    """Write a small file whole and durably if it does not exist; False if it does.

    A hard link makes a file with its content exclusively. A file system without links gets a
    check, then a rename.
    """
    with _written(path, content) as temporary:
        try:
            os.link(temporary, path)
        except OSError:
            if temporary.stat().st_nlink == 1:  # else the link was made, and the answer lost
                if path.exists():
                    return False
                temporary.replace(path)
        sync(path.parent)
    return True


def publish(temporary: Path, path: Path) -> None:
    """Rename, then fsync the folder, so that the new name survives a crash."""
    temporary.replace(path)
    sync(path.parent)


def link(source: Path, path: Path) -> None:
    """Hard-link a file; if the file system has no links, copy it as durably."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
        sync(path)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a crash."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """Give a synced temporary file beside `path`; removed at the end if it still exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
