"""Ranks that are multiples of a number: every method keeps to them, and to its budget."""

import pytest
import torch

from schemas.model.spec import Factors
from schemas.request.groups import AllocationConfig
from schemas.request.methods import ALLOCATIONS, Allocation
from tests.spectra import FACTORS, budget_of, loss_of, matrix, power, rough
from workers.allocation import MatrixLoss, Ranks, allocate
from workers.allocation.loss_aware import loss_aware
from workers.allocation.uniform import uniform

SHAPES = [(192, 192), (48, 192), (512, 192), (192, 512)] * 3


def losses_on(multiple: int) -> list[MatrixLoss]:
    return [
        loss_of(
            matrix(i // 4, m, n, f"mlp.{'abcd'[i % 4]}"),
            rough(min(m, n), i, 1.0 + i),
            nats=0.5 / (1 + i % 3),
        )._replace(multiple=multiple)
        for i, (m, n) in enumerate(SHAPES)
    ]


def nats(losses: list[MatrixLoss], found: Ranks) -> float:
    ranks = [(loss, found.ranks[loss.matrix.name]) for loss in losses]
    return sum((loss.nats or 0) * float(loss.tail()[rank]) for loss, rank in ranks if rank)


@pytest.mark.parametrize("method", [name for name, row in ALLOCATIONS.items() if row.ranks])
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("multiple", [1, 5, 16, 64])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_every_rank_is_a_multiple_within_the_budget(
    method: Allocation, factors: Factors, multiple: int, ratio: float
) -> None:
    losses = losses_on(multiple)
    found = allocate(AllocationConfig(method=method), losses, ratio, factors)
    for loss in losses:
        narrow = {64: 4, 16: 4, 5: 5, 1: 1}  # of 47 ranks below full rank
        wide = {64: 16}  # of 191
        table = narrow if loss.matrix.small == 48 else wide
        rank = found.ranks[loss.matrix.name]
        assert rank is None or rank % table.get(multiple, multiple) == 0
    assert any(found.ranks.values())
    assert found.parameters(losses, factors) <= budget_of(losses, ratio)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_uniform_ranks_are_rounded_down(factors: Factors, ratio: float) -> None:
    free, on_grid = (uniform(losses_on(multiple), ratio, factors).ranks for multiple in (1, 4))
    assert on_grid == {name: (rank or 0) // 4 * 4 for name, rank in free.items()}


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("multiple", [4, 16])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_choosing_among_multiples_loses_less_than_rounding_to_them(
    factors: Factors, multiple: int, ratio: float
) -> None:
    losses = losses_on(multiple)
    free = loss_aware(losses_on(1), ratio, factors).ranks
    rounded = {
        loss.matrix.name: rank and max(rank // loss.grid, 1) * loss.grid
        for loss in losses
        for rank in [free[loss.matrix.name]]
    }
    assert nats(losses, loss_aware(losses, ratio, factors)) < nats(losses, Ranks(rounded))


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("multiple", [1, 16, 64])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
def test_less_than_one_step_of_any_matrix_is_left(
    factors: Factors, multiple: int, ratio: float
) -> None:
    losses = losses_on(multiple)
    found = loss_aware(losses, ratio, factors)
    left = budget_of(losses, ratio) - found.parameters(losses, factors)
    for loss in losses:
        rank = found.ranks[loss.matrix.name]
        if rank is not None:
            higher = rank + loss.grid if rank + loss.grid <= loss.ranks else None
            dearer = min(loss.matrix.size, loss.matrix.stored_parameters(factors, higher))
            assert dearer - loss.matrix.stored_parameters(factors, rank) > left


@pytest.mark.parametrize("method", [name for name, row in ALLOCATIONS.items() if row.ranks])
def test_a_matrix_of_little_rank_has_a_grid_of_its_own(method: Allocation) -> None:
    """20 of 191 directions are there: 64, 32, 16, 8 and 4 leave fewer than 8 choices of them."""
    losses = [
        loss_of(matrix(i, 192, 192), power(192, 1.0)[:20])._replace(multiple=64) for i in range(2)
    ]
    found = allocate(AllocationConfig(method=method), losses, 0.5, "pivoted")
    assert set(found.ranks.values()) <= {20, None}
    assert losses[0].grid == 2


def test_a_matrix_without_a_spectrum_gets_rank_1() -> None:
    losses = [loss_of(matrix(0, 192, 192), torch.zeros(0))._replace(multiple=64)]
    assert uniform(losses, 0.5, "pivoted").ranks == {"layers.0.mlp.up_proj": 1}
