"""What ranks are multiples of: what was asked for, the device's, or less in small matrices."""

from typing import Any

import pytest

from schemas.model.grid import rank_grid
from schemas.request.config import RunConfig
from schemas.run.ranks import with_rank_multiple


def config(**allocation: Any) -> RunConfig:
    fields = {"model": "m", "output": "out", "ratio": 0.2, "allocation": allocation}
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("multiple", "ranks", "expected"),
    [
        (1, 0, 1),
        (1, 4095, 1),
        (64, 4095, 64),
        (64, 512, 64),
        (64, 511, 32),
        (64, 191, 16),
        (64, 7, 1),
        (64, 0, 1),
        (48, 95, 6),
        (6, 47, 3),
        (3, 23, 1),
    ],
)
def test_a_grid_leaves_eight_choices(multiple: int, ranks: int, expected: int) -> None:
    assert rank_grid(multiple, ranks) == expected


def test_the_device_decides_unless_something_is_asked_for() -> None:
    found = [with_rank_multiple(config(), device) for device in ("cuda", "cpu")]
    assert [one.allocation.rank_multiple for one in found] == [64, 32]
    for multiple in (1, 16):
        asked = config(rank_multiple=multiple)
        assert with_rank_multiple(asked, "cuda") == with_rank_multiple(asked, "cpu") == asked


@pytest.mark.parametrize("multiple", [0, -64, 1.5])
def test_ranks_are_multiples_of_a_positive_whole_number(multiple: float) -> None:
    with pytest.raises(ValueError, match="rank_multiple"):
        config(rank_multiple=multiple)
