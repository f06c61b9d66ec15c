"""Tensors between actors without a copy: bytes in Ray's shared memory, read in place.

torch's own pickle copies every tensor into the message and out of it again.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ray.util.serialization import register_serializer
from torch import Tensor
from torch.utils.dlpack import from_dlpack


class Packed(NamedTuple):
    """A tensor as its bytes, which numpy hands to Ray as they are."""

    data: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]


def share_tensors() -> None:
    """From now on, send every host tensor this way, to any process.

    The receiver must not write into it: others may read the same bytes.
    """
    register_serializer(torch.Tensor, serializer=pack, deserializer=unpack)


def pack(tensor: Tensor) -> Packed:
    """Return a view of a host tensor's bytes; a copy only if they are not contiguous."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return Packed(data, tensor.dtype, tuple(tensor.shape))


def unpack(packed: Packed) -> Tensor:
    """Return the tensor, backed by the memory of the bytes."""
    return from_dlpack(packed.data).view(packed.dtype).view(packed.shape)
