"""What a report keeps of a spectrum."""

import pytest

from pipeline.stages.present import sample


@pytest.mark.parametrize(("size", "rank"), [(1, None), (48, 7), (576, 575), (8192, 3000)])
def test_a_sampled_spectrum_has_both_ends_and_both_sides_of_the_cut(
    size: int, rank: int | None
) -> None:
    values = [1 / (at + 3) for at in range(size)]
    found = sample("layers.0.q", values, rank)
    assert found.size == size
    assert len(found.ranks) <= 64
    assert {1, size} <= {*found.ranks}
    assert rank is None or {rank, rank + 1} <= {*found.ranks}
    assert list(found.ranks) == sorted(set(found.ranks))
    assert found.values == pytest.approx([values[at - 1] for at in found.ranks], rel=1e-3)


def test_a_spectrum_of_nothing_is_empty() -> None:
    assert sample("layers.0.q", [], 3).ranks == ()
