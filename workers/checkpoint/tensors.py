"""The content of a checkpoint: its tensors, one at a time."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.errors import CheckpointError
from schemas.location import Location
from schemas.model.spec import DecoderSpec, TensorSpec
from workers.checkpoint.dequantise import values
from workers.storage.places import read_into
from workers.storage.tensorfile import DTYPES
from workers.storage.traffic import moved


class TensorReader:
    """Reads tensors of a checkpoint by name, on demand: only the bytes of each."""

    def __init__(self, folder: Path, spec: DecoderSpec) -> None:
        self._weights = spec.weights or folder
        self._tensors = {tensor.name: tensor for tensor in spec.tensors}

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the host, in its stored dtype; dequantised, if it is quantised."""
        spec = self._tensors[name]
        if spec.parts:
            return values([self._read(part) for part in spec.parts], spec.block)
        return self._read(spec)

    def _read(self, spec: TensorSpec) -> Tensor:
        place = self._weights / spec.file
        if spec.offset is None:
            raise ValueError(f"{spec.name}: known from config.json alone, not from a file")
        try:
            content = _bytes_of(place, spec.offset, spec.nbytes)
        except FileNotFoundError:
            raise CheckpointError(f"{place}: gone since its header was read") from None
        moved("read", "weights", spec.nbytes)
        return content.view(DTYPES[spec.dtype]).view(spec.shape)

    def file(self, name: str) -> Location:
        """Return the file that holds a tensor."""
        return self._weights / self._tensors[name].file


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, computed without a copy."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _bytes_of(place: Location, start: int, size: int) -> Tensor:
    """Return part of a file (size,) uint8; a local one is mapped, and copied only on write."""
    if isinstance(place, Path) and 0 < size <= place.stat().st_size - start:
        return torch.from_numpy(np.memmap(place, np.uint8, "c", start, (size,)))
    content = torch.empty(size, dtype=torch.uint8)
    read_into(place, start, content.numpy().data)
    return content
