"""What a report keeps of a spectrum."""

import pytest

from pipeline.stages.present import remark, sample
from tests import reports


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


def test_training_that_changed_nothing_is_remarked() -> None:
    rows = reports.matrices(1)
    trained = [reports.recovery(*losses) for losses in ((2.0,), (2.0, 1.0))]
    found = [remark(reports.compression(rows, recovery=one), None) for one in trained]
    assert "the factors are as they were" in found[0]
    assert found[1] == ""
    assert "predicted, +0.4137 measured" in remark(
        reports.compression(rows, nats=0.1), reports.evaluation()
    )


def test_a_spectrum_of_nothing_is_empty() -> None:
    assert sample("layers.0.q", [], 3).ranks == ()
