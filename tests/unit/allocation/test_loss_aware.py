"""Loss-aware ranks against brute force over every combination."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model.spec import Factors
from tests.spectra import (
    FACTORS,
    SHAPES,
    SPECTRA,
    budget_of,
    exponential,
    loss_of,
    matrix,
    power,
    problem,
    rough,
    steps,
)
from workers.allocation import MatrixLoss, Ranks
from workers.allocation.loss_aware import loss_aware
from workers.allocation.uniform import uniform

# --- an independent statement of the problem --------------------------------------------------


class Choice(NamedTuple):
    rank: int | None
    cost: int
    nats: float


def choice(loss: MatrixLoss, factors: Factors, rank: int | None) -> Choice:
    m, n = loss.matrix.out_features, loss.matrix.in_features
    if rank is None:
        return Choice(None, m * n, 0.0)
    cost = rank * (m + n - (rank if factors == "pivoted" else 0))
    return Choice(rank, cost, (loss.nats or 0.0) * math.fsum(loss.eigenvalues[rank:].tolist()))


def menu(loss: MatrixLoss, factors: Factors) -> list[Choice]:
    """Every rank on the grid that takes fewer parameters than the matrix itself, and dense."""
    limit = min(loss.matrix.out_features - 1, loss.matrix.in_features - 1, len(loss.eigenvalues))
    step = loss.multiple  # of matrices that are wide enough for it
    choices = [choice(loss, factors, rank) for rank in range(step, limit + 1, step)]
    dense = choice(loss, factors, None)
    return [*(one for one in choices if one.cost < dense.cost), dense]


def measure(losses: Sequence[MatrixLoss], factors: Factors, found: Ranks) -> tuple[int, float]:
    """Parameters and nats of an allocation."""
    picked = [choice(loss, factors, found.ranks[loss.matrix.name]) for loss in losses]
    return sum(one.cost for one in picked), math.fsum(one.nats for one in picked)


def brute_force(losses: Sequence[MatrixLoss], factors: Factors, budget: int) -> float:
    """The least nats of all combinations within the budget."""
    combinations = itertools.product(*(menu(loss, factors) for loss in losses))
    return min(
        math.fsum(one.nats for one in combination)
        for combination in combinations
        if sum(one.cost for one in combination) <= budget
    )


def hull_edges(choices: list[Choice]) -> list[tuple[float, int, float]]:
    """Slope, cost and gain of the edges of the lower convex hull, steepest first."""
    edges = []
    at = choices[0]
    while rest := [one for one in choices if one.cost > at.cost]:
        slopes = [(at.nats - one.nats) / (one.cost - at.cost) for one in rest]
        slope = max(slopes)
        farthest = rest[max(i for i, s in enumerate(slopes) if s == slope)]
        edges.append((slope, farthest.cost - at.cost, at.nats - farthest.nats))
        at = farthest
    return edges


def critical_gain(losses: Sequence[MatrixLoss], factors: Factors, budget: int) -> float:
    """Gain of the hull edge at which the budget runs out: no Lagrangian solution can be farther
    than that from the optimum (the multiple-choice knapsack bound, Sinha and Zoltners 1979).
    """
    menus = [menu(loss, factors) for loss in losses]
    left = budget - sum(choices[0].cost for choices in menus)
    edges = sorted((edge for choices in menus for edge in hull_edges(choices)), reverse=True)
    for slope, cost, gain in edges:
        if cost > left:
            return max([gain, *(g for s, _, g in edges if math.isclose(s, slope))])
        left -= cost
    return 0.0


# --- loss-aware -------------------------------------------------------------------------------


def assert_near_optimum(losses: list[MatrixLoss], ratio: float, factors: Factors) -> None:
    """The ranks keep to the budget, and no others lose less by more than the last hull edge."""
    budget = budget_of(losses, ratio)
    parameters, nats = measure(losses, factors, loss_aware(losses, ratio, factors))
    optimum = brute_force(losses, factors, budget)
    assert parameters <= budget
    assert nats >= optimum * (1 - 1e-9)
    # Beside the gap that any Lagrangian solution may have: float64 rounding of the sums.
    assert nats <= (optimum + critical_gain(losses, factors, budget)) * (1 + 1e-9)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.37, 0.5, 0.63])
def test_no_combination_is_much_better(kind: str, factors: Factors, ratio: float) -> None:
    assert_near_optimum(problem(kind), ratio, factors)


@pytest.mark.parametrize("kind", ["power", "flat", "steps", "rough", "tiny and huge"])
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.6])
def test_no_combination_on_a_grid_is_much_better(kind: str, factors: Factors, ratio: float) -> None:
    losses = [
        loss_of(matrix(i, m, n), SPECTRA[kind](min(m, n), i))._replace(multiple=2)
        for i, (m, n) in enumerate([(20, 20), (18, 30), (30, 18)])
    ]
    assert_near_optimum(losses, ratio, factors)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("factors", FACTORS)
def test_it_is_optimal_where_a_multiplier_meets_the_budget(kind: str, factors: Factors) -> None:
    losses = problem(kind)
    whole = sum(loss.matrix.size for loss in losses)
    edges = sorted(
        (edge for loss in losses for edge in hull_edges(menu(loss, factors))), reverse=True
    )
    budget = sum(menu(loss, factors)[0].cost for loss in losses)
    for slope, cost, _ in edges:
        budget += cost
        found = loss_aware(losses, 1 - (budget + 0.5) / whole, factors)
        _, nats = measure(losses, factors, found)
        assert nats == pytest.approx(brute_force(losses, factors, budget), rel=1e-9, abs=0), slope


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kind", SPECTRA)
def test_nothing_is_cut_at_ratio_0(kind: str, factors: Factors) -> None:
    found = loss_aware(problem(kind), 0.0, factors)
    assert set(found.ranks.values()) == {None}


@pytest.mark.parametrize("factors", FACTORS)
def test_scale_of_the_loss_does_not_change_ranks(factors: Factors) -> None:
    found = [
        loss_aware(
            [
                loss_of(matrix(i, m, n), rough(min(m, n), i, scale))
                for i, (m, n) in enumerate(SHAPES)
            ],
            0.37,
            factors,
        ).ranks
        for scale in (2.0**-200, 1.0, 2.0**200)  # powers of two: no rounding
    ]
    assert found[0] == found[1] == found[2]


def test_a_matrix_that_matters_stays_dense_and_the_other_pays() -> None:
    losses = [
        loss_of(matrix(0, 20, 20), torch.ones(20), nats=1e6),
        loss_of(matrix(1, 20, 20), exponential(20, 10.0), nats=1e-6),
    ]
    ranks = loss_aware(losses, 0.4, "plain").ranks
    assert ranks == {"layers.0.mlp.up_proj": None, "layers.1.mlp.up_proj": 2}


@pytest.mark.parametrize("factors", FACTORS)
def test_dense_is_taken_where_factors_would_be_dearer(factors: Factors) -> None:
    """Plain factors of a square matrix pay up to half its rank only."""
    losses = [loss_of(matrix(i, 20, 20), power(20, 0.1)) for i in range(4)]
    for ratio in (0.1, 0.3, 0.5):
        for rank in loss_aware(losses, ratio, factors).ranks.values():
            assert rank is None or rank < (10 if factors == "plain" else 20)


@pytest.mark.parametrize("factors", FACTORS)
def test_a_rank_removes_at_least_what_is_asked_or_the_matrix_stays_dense(
    factors: Factors,
) -> None:
    losses = [loss_of(matrix(i, 24, 20), exponential(20, 1.5)) for i in range(5)]
    whole = sum(loss.matrix.size for loss in losses)

    def shares(found: Ranks) -> list[float]:
        ranks = [(loss.matrix, found.ranks[loss.matrix.name]) for loss in losses]
        return [1 - one.stored_parameters(factors, rank) / one.size for one, rank in ranks]

    free, found = (loss_aware(losses, 0.1, factors, min_ratio=at) for at in (0.0, 0.5))
    assert any(0 < share < 0.5 for share in shares(free))
    assert all(share == 0 or share >= 0.5 for share in shares(found))
    assert found.parameters(losses, factors) <= 0.9 * whole
    assert measure(losses, factors, free)[1] <= measure(losses, factors, found)[1]


def test_equal_matrices_share_what_can_be_shared() -> None:
    losses = [loss_of(matrix(i, 20, 20), exponential(20, 1.5)) for i in range(5)]
    found = loss_aware(losses, 0.5, "plain").ranks
    ranks = [rank for rank in found.values() if rank is not None]
    assert len(ranks) == 5
    assert max(ranks) - min(ranks) <= 1


@pytest.mark.parametrize("factors", FACTORS)
def test_full_rank_is_never_stored_as_factors(factors: Factors) -> None:
    losses = [loss_of(matrix(0, 6, 40), power(6, 0.1)), loss_of(matrix(1, 6, 40), power(6, 0.2))]
    for ratio in (0.0, 0.05, 0.1, 0.2):
        for rank in loss_aware(losses, ratio, factors).ranks.values():
            assert rank is None or rank < 6


@pytest.mark.parametrize("factors", FACTORS)
def test_too_high_a_ratio_is_refused_with_the_numbers(factors: Factors) -> None:
    losses = [loss_of(matrix(i, 10, 10), power(10, 1.0)) for i in range(3)]
    least = 3 * (20 if factors == "plain" else 19)
    with pytest.raises(ConfigError, match=rf"ratio 0\.9.*3 matrices takes {least}.*the 30 .*lower"):
        loss_aware(losses, 0.9, factors)


def test_the_highest_ratio_leaves_rank_1() -> None:
    losses = [loss_of(matrix(i, 10, 10), power(10, 1.0)) for i in range(3)]
    assert set(loss_aware(losses, 0.8, "plain").ranks.values()) == {1}


def test_without_gradients_loss_aware_is_refused() -> None:
    losses = [loss_of(matrix(0, 10, 10), power(10, 1.0), nats=None)]
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj.*needs gradients"):
        loss_aware(losses, 0.2, "plain")


# --- loss-aware, at a size that counts ----------------------------------------------------------


LAYER = [(512, 512), (128, 512), (128, 512), (512, 512), (1408, 512), (1408, 512), (512, 1408)]
LARGE: dict[str, Callable[[int, int], Tensor]] = {
    "power": lambda size, i: power(size, 0.4 + 0.03 * (i % 29), 2.0 ** (i % 5)),
    "flat": lambda size, i: torch.ones(size),
    "steps": lambda size, i: steps(size, 32),
    "rough": rough,
    "tiny and huge": lambda size, i: rough(size, i, 10.0 ** (i - 30)),
    "steep": lambda size, i: exponential(size, 2.0, 1e30),
}


class Large(NamedTuple):
    """39 matrices with 17 M parameters, and their global ranks by ratio."""

    losses: list[MatrixLoss]
    factors: Factors
    found: dict[float, Ranks]


@pytest.fixture(scope="module", params=itertools.product(LARGE, FACTORS), ids="-".join)
def large(request: pytest.FixtureRequest) -> Large:
    kind, factors = request.param
    made = LARGE[kind]
    losses = [
        loss_of(matrix(i, m, n), made(min(m, n), i), nats=0.5 / (1 + i % 7))
        for i, (m, n) in enumerate((LAYER * 6)[:39])
    ]
    found = {ratio: loss_aware(losses, ratio, factors) for ratio in (0.1, 0.2, 0.5, 0.8)}
    return Large(losses, factors, found)


@pytest.mark.slow
def test_a_large_model_uses_its_budget_to_a_thousandth(large: Large) -> None:
    assert sum(loss.matrix.size for loss in large.losses) > 10_000_000
    for ratio, found in large.found.items():
        budget = budget_of(large.losses, ratio)
        assert 0.999 * budget <= found.parameters(large.losses, large.factors) <= budget


@pytest.mark.slow
def test_removing_more_never_loses_less(large: Large) -> None:
    measured = [measure(large.losses, large.factors, found) for found in large.found.values()]
    parameters, nats = zip(*measured, strict=True)
    assert sorted(parameters, reverse=True) == list(parameters)
    assert sorted(nats) == list(nats)


@pytest.mark.slow
def test_global_ranks_lose_no_more_than_uniform_ones(large: Large) -> None:
    for ratio, found in large.found.items():
        even = uniform(large.losses, ratio, large.factors)
        ours, theirs = (measure(large.losses, large.factors, ranks)[1] for ranks in (found, even))
        assert ours <= theirs
