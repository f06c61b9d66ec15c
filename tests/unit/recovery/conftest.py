"""A truncated model for each file, and a process group of one for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.models import tiny_model
from tests.recovery import Cut, cut, group


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return cut(tiny_model(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    with group(tmp_path / "group"):
        yield init_device_mesh("cpu", (1,))
