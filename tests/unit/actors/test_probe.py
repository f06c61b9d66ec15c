"""What a worker computes on follows from what Ray gave it."""

import pytest
import ray
import torch

from schemas.request.groups import Device
from workers.actors.probe import own_device


@pytest.mark.parametrize(
    ("asked", "given", "found"),
    [("auto", [3], "cuda"), ("auto", [], "cpu"), ("cuda", [], "cuda"), ("cpu", [3], "cpu")],
)
def test_a_gpu_that_ray_does_not_count_is_not_used(
    monkeypatch: pytest.MonkeyPatch, asked: Device, given: list[int], found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "preferred_linalg_library", lambda _: None)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    assert own_device(asked).type == found
