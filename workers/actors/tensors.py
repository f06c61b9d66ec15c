"""Tensors between actors without a copy: bytes in Ray's shared memory, read where they lie.

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
    """Send every tensor of the host so from now on, to whatever process.

    Who receives one must not write into it: others may read the same bytes.
    """
    register_serializer(torch.Tensor, serializer=pack, deserializer=unpack)


def pack(tensor: Tensor) -> Packed:
    """A view of the bytes of a tensor on the host; a copy only where they are not in one piece."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return Packed(data, tensor.dtype, tuple(tensor.shape))


def unpack(packed: Packed) -> Tensor:
    """The tensor, in the memory of the bytes."""
    return from_dlpack(packed.data).view(packed.dtype).view(packed.shape)
