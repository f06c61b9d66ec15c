"""In which dtype a checkpoint is computed."""

import pytest
import torch

from schemas.request.groups import DType
from workers.process.devices import compute_dtype


@pytest.mark.parametrize(
    ("asked", "stored", "device", "expected"),
    [
        ("auto", "BF16", "cuda", torch.bfloat16),
        ("auto", "F32", "cuda", torch.float32),
        ("auto", "F16", "cuda", torch.bfloat16),
        ("auto", "F16", "cpu", torch.float32),
        ("auto", "BF16", "cpu", torch.float32),
        ("float16", "BF16", "cuda", torch.float16),
        ("float32", "F16", "cuda", torch.float32),
    ],
)
def test_the_dtype_that_is_computed_in(
    asked: DType, stored: str, device: str, expected: torch.dtype
) -> None:
    assert compute_dtype(asked, stored, torch.device(device)) == expected
