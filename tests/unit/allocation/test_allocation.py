"""Ranks against brute force over every combination, and against the papers' formulas."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model.spec import Factors, MatrixSpec
from schemas.request.groups import AllocationConfig
from schemas.request.methods import Allocation
from workers.allocation import MatrixLoss, Ranks, allocate
from workers.allocation.loss_aware import loss_aware
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform

FACTORS: list[Factors] = ["plain", "pivoted"]


def matrix(
    index: int, out_features: int, in_features: int, path: str = "mlp.up_proj"
) -> MatrixSpec:
    return MatrixSpec(
        name=f"layers.{index}.{path}",
        layer=index,
        path=path,
        reads="mlp",
        out_features=out_features,
        in_features=in_features,
        bias=False,
    )


def loss_of(
    spec: MatrixSpec, eigenvalues: Tensor, nats: float | None = 0.5, tokens: int = 1000
) -> MatrixLoss:
    return MatrixLoss(spec, eigenvalues.double(), nats, tokens)


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
    """Every rank that takes fewer parameters than the matrix itself, and dense."""
    limit = min(loss.matrix.out_features - 1, loss.matrix.in_features - 1, len(loss.eigenvalues))
    choices = [choice(loss, factors, rank) for rank in range(1, limit + 1)]
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


def budget_of(losses: Sequence[MatrixLoss], ratio: float) -> int:
    """floor((1 - R) sum of m n), R being the decimal number that was written."""
    return math.floor((1 - Fraction(str(ratio))) * sum(loss.matrix.size for loss in losses))


# --- spectra ----------------------------------------------------------------------------------


def power(size: int, exponent: float, scale: float = 1.0) -> Tensor:
    return scale * torch.arange(1, size + 1, dtype=torch.float64) ** -exponent


def exponential(size: int, base: float, scale: float = 1.0) -> Tensor:
    return scale * base ** -torch.arange(size, dtype=torch.float64)


def steps(size: int, width: int, scale: float = 1.0) -> Tensor:
    """Plateaus of equal eigenvalues."""
    return scale * 10.0 ** -(torch.arange(size) // width).double()


def rough(size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Cubes of exponential noise: a few large, many small."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, generator=generator, dtype=torch.float64)
    return scale * (-noise.log()).pow(3).sort(descending=True).values


SHAPES = [(6, 6), (4, 9), (9, 4)]
SPECTRA: dict[str, Callable[[int, int], Tensor]] = {
    "power": lambda size, i: power(size, 0.5 + i),
    "exponential": lambda size, i: exponential(size, 2.0 + i),
    "equal": lambda size, i: power(size, 1.0),
    "flat": lambda size, i: torch.ones(size),
    "steps": lambda size, i: steps(size, 2, 10.0**i),
    "rough": rough,
    "tiny": lambda size, i: rough(size, i, 1e-30),
    "huge": lambda size, i: rough(size, i, 1e30),
    "tiny and huge": lambda size, i: rough(size, i, 10.0 ** (30 * (i - 1))),
    "denormal": lambda size, i: rough(size, i, 1e-290),
    "zero": lambda size, i: torch.zeros(size),
    "one zero": lambda size, i: rough(size, i) * (i != 1),
    "deficient": lambda size, i: rough(size, i)[: 1 + i],
    "rank one": lambda size, i: torch.ones(1),
}


def problem(kind: str) -> list[MatrixLoss]:
    return [
        loss_of(matrix(i, m, n), SPECTRA[kind](min(m, n), i), nats=0.5 / (1 + i % 2))
        for i, (m, n) in enumerate(SHAPES)
    ]


# --- loss-aware -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.37, 0.5, 0.63])
def test_no_combination_is_much_better(kind: str, factors: Factors, ratio: float) -> None:
    losses = problem(kind)
    budget = budget_of(losses, ratio)
    parameters, nats = measure(losses, factors, loss_aware(losses, ratio, factors))
    optimum = brute_force(losses, factors, budget)
    assert parameters <= budget
    assert nats >= optimum * (1 - 1e-9)
    # Beside the gap that any Lagrangian solution may have: float64 rounding of the sums.
    assert nats <= (optimum + critical_gain(losses, factors, budget)) * (1 + 1e-9)


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
    "exponential": lambda size, i: exponential(size, 1.005 + 0.001 * (i % 17)),
    "equal": lambda size, i: power(size, 1.0),
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


def test_a_large_model_uses_its_budget_to_a_thousandth(large: Large) -> None:
    assert sum(loss.matrix.size for loss in large.losses) > 10_000_000
    for ratio, found in large.found.items():
        budget = budget_of(large.losses, ratio)
        assert 0.999 * budget <= found.parameters(large.losses, large.factors) <= budget


def test_removing_more_never_loses_less(large: Large) -> None:
    measured = [measure(large.losses, large.factors, found) for found in large.found.values()]
    parameters, nats = zip(*measured, strict=True)
    assert sorted(parameters, reverse=True) == list(parameters)
    assert sorted(nats) == list(nats)


def test_global_ranks_lose_no_more_than_uniform_ones(large: Large) -> None:
    for ratio, found in large.found.items():
        even = uniform(large.losses, ratio, large.factors)
        ours, theirs = (measure(large.losses, large.factors, ranks)[1] for ranks in (found, even))
        assert ours <= theirs


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


# --- SVD-LLM V2 -------------------------------------------------------------------------------


def paper_ratios(minima: Sequence[float], ratio: float) -> list[float]:
    """Algorithm 1 of arXiv 2503.12340: r_i = |G| R (1 / log L_i) / sum_j (1 / log L_j)."""
    inverse = [1 / math.log(value) for value in minima]
    return [len(minima) * ratio * value / sum(inverse) for value in inverse]


def minimum_loss(loss: MatrixLoss, ratio: float) -> float:
    """||(W - W') X||_F of plain factors at the uniform ratio, on the un-normalised Gram."""
    m, n = loss.matrix.out_features, loss.matrix.in_features
    rank = math.floor((1 - Fraction(str(ratio))) * m * n / (m + n))
    return math.sqrt(loss.tokens * math.fsum(loss.eigenvalues[rank:].tolist()))


def group(path: str, scales: Sequence[float], size: int = 60) -> list[MatrixLoss]:
    return [
        loss_of(matrix(i, size, size, path), power(size, 1.0, scale), tokens=10_000)
        for i, scale in enumerate(scales)
    ]


def removed(loss: MatrixLoss, rank: int | None) -> float:
    m, n = loss.matrix.out_features, loss.matrix.in_features
    return 0.0 if rank is None else 1 - rank * (m + n) / (m * n)


STEP = 120 / 3600  # one plain rank of a 60 x 60 matrix, as a ratio


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_v2_ratios_are_those_of_the_formula_in_each_group(ratio: float) -> None:
    groups = [group("mlp.up_proj", [0.5, 1, 4, 1e3]), group("mlp.down_proj", [3, 3, 1e5, 2])]
    losses = [loss for pair in zip(*groups, strict=True) for loss in pair]
    found = svd_llm_v2(losses, ratio, "plain")
    assert found.fallbacks == ()
    for members in groups:
        ratios = paper_ratios([minimum_loss(loss, ratio) for loss in members], ratio)
        for loss, expected in zip(members, ratios, strict=True):
            actual = removed(loss, found.ranks[loss.matrix.name])
            assert expected - 1e-9 <= actual < expected + STEP


def test_v2_removes_less_where_the_loss_is_higher() -> None:
    losses = group("mlp.up_proj", [1, 10, 100, 1e4])
    ranks = [rank for rank in svd_llm_v2(losses, 0.4, "plain").ranks.values() if rank is not None]
    assert sorted(set(ranks)) == ranks


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_v2_clips_at_rank_1_and_shares_the_excess_out(ratio: float) -> None:
    """The first loss is so near 1 that the formula would remove more than all of its matrix."""
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4])
    ceiling = minimum_loss(losses[0], ratio)
    losses[0] = losses[0]._replace(eigenvalues=losses[0].eigenvalues * (1.0001 / ceiling) ** 2)
    minima = [minimum_loss(loss, ratio) for loss in losses]
    assert minima[0] == pytest.approx(1.0001)
    assert paper_ratios(minima, ratio)[0] > 1
    cap = 1 - STEP
    rest = paper_ratios(minima[1:], (3 * ratio - cap) / 2)
    found = svd_llm_v2(losses, ratio, "plain")
    assert [note.partition(":")[0] for note in found.fallbacks] == [losses[0].matrix.name]
    actual = [removed(loss, found.ranks[loss.matrix.name]) for loss in losses]
    assert actual[0] == pytest.approx(cap)
    for one, expected in zip(actual[1:], rest, strict=True):
        assert expected - 1e-9 <= one < expected + STEP


def test_v2_clips_at_the_bound_that_is_asked_for_and_says_so() -> None:
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4])
    ceiling = minimum_loss(losses[0], 0.4)
    losses[0] = losses[0]._replace(eigenvalues=losses[0].eigenvalues * (1.05 / ceiling) ** 2)
    minima = [minimum_loss(loss, 0.4) for loss in losses]
    asked = paper_ratios(minima, 0.4)[0]
    assert asked > 1
    found = svd_llm_v2(losses, 0.4, "plain", max_ratio=0.9)
    [note] = found.fallbacks
    assert note == f"layers.0.mlp.up_proj: a ratio of {asked:.3g}, by its loss, clipped to 0.9"
    rest = paper_ratios(minima[1:], (3 * 0.4 - 0.9) / 2)
    for loss, expected in zip(losses, [0.9, *rest], strict=True):
        assert expected - 1e-9 <= removed(loss, found.ranks[loss.matrix.name]) < expected + STEP


def test_a_ratio_above_the_bound_is_uniform() -> None:
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4])
    found = svd_llm_v2(losses, 0.8, "plain", max_ratio=0.5)
    assert found.ranks == uniform(losses, 0.8, "plain").ranks


def test_v2_clips_again_where_the_excess_runs_over() -> None:
    losses = group("mlp.up_proj", [1.0, 1e1, 1e9])
    ratio = 0.95
    ranks = svd_llm_v2(losses, ratio, "plain").ranks
    assert [ranks[f"layers.{i}.mlp.up_proj"] for i in range(2)] == [1, 1]
    last = removed(losses[2], ranks["layers.2.mlp.up_proj"])
    expected = 3 * ratio - 2 * (1 - STEP)
    assert expected - 1e-9 <= last < expected + STEP


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_v2_is_uniform_where_a_logarithm_is_not_positive_and_says_so(scale: float) -> None:
    undefined = group("mlp.up_proj", [1.0, 1e2, scale])
    defined = group("mlp.down_proj", [1.0, 1e2, 1e3])
    found = svd_llm_v2([*undefined, *defined], 0.4, "plain")
    [note] = found.fallbacks
    assert note.startswith("mlp.up_proj: a theoretical loss of")
    assert "uniform ratio used" in note
    expected = uniform(undefined, 0.4, "plain").ranks
    assert expected.items() <= found.ranks.items()
    assert found.ranks["layers.2.mlp.down_proj"] != found.ranks["layers.0.mlp.down_proj"]


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 0.8, 0.9])
def test_v2_of_equal_losses_is_uniform(ratio: float, factors: Factors) -> None:
    losses = group("mlp.up_proj", [1.0, 1.0, 1.0])
    found = svd_llm_v2(losses, ratio, factors)
    assert found.ranks == uniform(losses, ratio, factors).ranks
    assert found.fallbacks == ()


@pytest.mark.parametrize("factors", FACTORS)
def test_v2_at_ratio_0_is_dense(factors: Factors) -> None:
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4])
    assert set(svd_llm_v2(losses, 0.0, factors).ranks.values()) == {None}


# --- all three --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", get_args(Allocation))
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75])
def test_no_allocation_is_over_its_budget(
    method: Allocation, factors: Factors, ratio: float
) -> None:
    losses = group("mlp.up_proj", [1.0, 1e2, 1e4]) + group("mlp.down_proj", [5.0, 5.0, 0.0])
    found = allocate(AllocationConfig(method=method), losses, ratio, factors)
    assert found.parameters(losses, factors) <= budget_of(losses, ratio)
    assert found.ranks.keys() == {loss.matrix.name for loss in losses}
