"""In which dtype a checkpoint is computed, and trained."""

import pytest
import torch

from schemas.request.groups import DType
from workers.process.devices import compute_dtype, training_dtype


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


@pytest.mark.parametrize(
    ("asked", "device", "units", "expected"),
    [
        ("auto", "cuda", {}, torch.bfloat16),
        ("auto", "cpu", {}, torch.float32),
        ("auto", "cpu", {"amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ("auto", "cpu", {"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ("auto", "cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("float32", "cpu", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_the_dtype_that_is_trained_in(
    asked: DType,
    device: str,
    units: dict[str, bool],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)

    assert training_dtype(asked, torch.device(device)) == expected
