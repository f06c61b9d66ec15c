"""Writing safetensors files as a stream: one tensor in memory at a time, hashed on the way."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.model.dtypes import FORMATS, QUANTISED

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, row.torch) for name, row in (FORMATS | QUANTISED).items()
}
_METADATA = {"format": "pt"}  # of every file, as transformers expects it
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor to be written: `load` is called once, when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor] = torch.Tensor  # none, of one that is only described

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Written(NamedTuple):
    """SHA-256 and size of a written file."""

    sha256: str
    bytes: int


def entries(tensors: Mapping[str, Tensor]) -> list[Entry]:
    """Return tensors already in memory as entries."""
    return [
        Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in tensors.items()
    ]


def write_tensors(path: Path, content: Iterable[Entry]) -> Written:
    """Write `content` to `path` and fsync it, in order if that aligns every tensor.

    Raises ValueError if a loaded tensor does not have the promised dtype and shape, OSError, which
    names `path`, if it cannot be written.
    """
    ordered = _ordered(content)
    header = _header(ordered)
    digest, size = hashlib.sha256(header), len(header)
    try:
        with path.open("wb") as file:
            file.write(header)
            for entry in ordered:
                data = _content(entry)
                file.write(data)
                digest.update(data)
                size += len(data)
                del data  # before the next one is loaded
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return Written(digest.hexdigest(), size)


def write_shapes(path: Path, content: Iterable[Entry]) -> None:
    """Write a file of the same names, dtypes and shapes without values, which takes no room."""
    ordered = _ordered(content)
    with path.open("wb") as file:
        file.write(_header(ordered))
        file.truncate(size_in_file(ordered))


def size_in_file(content: Iterable[Entry]) -> int:
    """Return the size of the file that `write_tensors` makes of `content`; nothing is loaded."""
    ordered = _ordered(content)
    return len(_header(ordered)) + sum(entry.nbytes for entry in ordered)


def _ordered(content: Iterable[Entry]) -> list[Entry]:
    """Return the tensors as they are given, where what is loaded together is next to each other; if
    one would not start at a multiple of its width, wider dtypes come first, so that all do.
    """
    given = list(content)
    starts = accumulate((entry.nbytes for entry in given), initial=0)
    if not any(start % entry.dtype.itemsize for start, entry in zip(starts, given, strict=False)):
        return given
    return sorted(given, key=lambda entry: -entry.dtype.itemsize)


def _content(entry: Entry) -> memoryview:
    tensor = entry.load().detach().cpu().contiguous()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(
            f"{entry.name}: expected {entry.dtype} {entry.shape}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    # As one row: torch calls a single element contiguous whatever its stride, but `view` does not.
    row = tensor.as_strided((tensor.numel(),), (1,))
    return row.view(torch.uint8).numpy().data


def _header(ordered: list[Entry]) -> bytes:
    """Return the header: its length (8 bytes, little-endian), then JSON padded to 8 bytes."""
    table: dict[str, object] = {"__metadata__": _METADATA}
    start = 0
    for entry in ordered:
        table[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
