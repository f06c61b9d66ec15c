"""Uniform ranks against the formula of the paper, and the budget that every method keeps."""

import math
from fractions import Fraction

import pytest

from schemas.model.spec import Factors
from schemas.request.groups import AllocationConfig
from schemas.request.methods import ALLOCATIONS, Allocation
from tests.spectra import FACTORS, SPECTRA, budget_of, group, loss_of, matrix, power, problem
from workers.allocation import allocate
from workers.allocation.uniform import uniform

# --- uniform ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (64, 48), (30, 100), (100, 30), (5120, 5120)])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_uniform_plain_ranks_are_those_of_the_paper(shape: tuple[int, int], ratio: float) -> None:
    """floor((1 - R) m n / (m + n)), R being the decimal number that was written."""
    m, n = shape
    losses = [loss_of(matrix(0, m, n), power(min(m, n), 1.0))]
    expected = math.floor((1 - Fraction(str(ratio))) * m * n / (m + n))
    assert uniform(losses, ratio, "plain").ranks == {"layers.0.mlp.up_proj": expected}


@pytest.mark.parametrize("shape", [(40, 40), (64, 48), (30, 100), (100, 30)])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_uniform_pivoted_ranks_are_the_largest_that_fit(
    shape: tuple[int, int], ratio: float
) -> None:
    m, n = shape
    losses = [loss_of(matrix(0, m, n), power(min(m, n), 1.0))]
    share = (1 - Fraction(str(ratio))) * m * n
    expected = max(k for k in range(1, min(m, n)) if k * (m + n - k) <= share)
    assert uniform(losses, ratio, "pivoted").ranks == {"layers.0.mlp.up_proj": expected}


def test_pivoted_factors_keep_more_rank_of_a_square_matrix() -> None:
    losses = [loss_of(matrix(0, 1000, 1000), power(1000, 1.0))]
    assert uniform(losses, 0.2, "plain").ranks == {"layers.0.mlp.up_proj": 400}
    assert uniform(losses, 0.2, "pivoted").ranks == {"layers.0.mlp.up_proj": 552}


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kind", SPECTRA)
def test_uniform_at_ratio_0_is_dense(kind: str, factors: Factors) -> None:
    assert set(uniform(problem(kind), 0.0, factors).ranks.values()) == {None}


@pytest.mark.parametrize("factors", FACTORS)
def test_uniform_never_asks_for_more_rank_than_there_is(factors: Factors) -> None:
    losses = [loss_of(matrix(0, 40, 40), power(3, 1.0))]
    assert uniform(losses, 0.1, factors).ranks == {"layers.0.mlp.up_proj": 3}


# --- all that lower ranks ---------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name, row in ALLOCATIONS.items() if row.ranks])
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75])
def test_no_allocation_is_over_its_budget(
    method: Allocation, factors: Factors, ratio: float
) -> None:
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4]) + group("mlp.down_proj", [5.0, 5.0, 0.0])
    for i, scale in enumerate([1.0, 1e3] * 3):  # one path of several sizes
        spec = matrix(i, 60 + 60 * (i % 2), 60, "self_attn.k_proj")
        losses.append(loss_of(spec, power(60, 1.0, scale), tokens=10_000))
    found = allocate(AllocationConfig(method=method), losses, ratio, factors)
    assert found.parameters(losses, factors) <= budget_of(losses, ratio)
    assert found.ranks.keys() == {loss.matrix.name for loss in losses}
