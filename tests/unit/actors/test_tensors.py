"""Tensors as bytes and back: the same values, in the same memory."""

import pickle

import pytest
import torch
from torch import Tensor

from workers.actors.tensors import Packed, pack, unpack

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 5)])
def test_a_tensor_is_the_same_bits_in_the_same_memory(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sent = torch.randn(shape).to(dtype)
    found = unpack(pack(sent))
    assert (found.dtype, found.shape) == (dtype, sent.shape)
    assert found.data_ptr() == sent.data_ptr()
    assert torch.equal(found, sent)


def test_what_is_not_in_one_piece_is_copied() -> None:
    """The rest of its memory is not sent with it."""
    sent = torch.arange(24.0).view(4, 6).T[1:3]
    packed = pack(sent)
    assert packed.data.nbytes == sent.nbytes
    assert torch.equal(unpack(packed), sent)


def test_memory_that_may_not_be_written_is_read_where_it_lies() -> None:
    """As what Ray maps; a warning would be an error here."""
    sent = torch.randn(64).bfloat16()
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(pack(sent), protocol=5, buffer_callback=buffers.append)
    assert len(message) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [sent.nbytes]
    found = received(message, [memoryview(bytes(buffer.raw())) for buffer in buffers])
    assert torch.equal(found, sent)


def received(message: bytes, buffers: list[memoryview]) -> Tensor:
    packed = pickle.loads(message, buffers=buffers)  # noqa: S301 - made above
    assert isinstance(packed, Packed)
    assert not packed.data.flags.writeable
    return unpack(packed)
