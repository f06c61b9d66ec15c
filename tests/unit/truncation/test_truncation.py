"""Every truncation against the papers' formulas, written out in float64."""

import pytest
import torch

from schemas.request.methods import Truncation
from tests.layers import (
    EXACT,
    PAPERS,
    ROUNDING,
    SHAPES,
    TRUNCATIONS,
    layer,
    ranks,
    relative,
    root,
    tails,
    written,
)

CONDITIONS = [1.0, 1e4, 1e10]
SHRINKAGES = [0.001, 0.1, 1.0]


# --- the optimum ------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", PAPERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_papers_truncations_are_the_textbook_optimum(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    made = layer(shape, condition)
    problem = made.problem(truncation)
    basis = problem.basis()
    for rank in ranks(shape):
        expected = made.optimum(made.metric(truncation), rank)
        assert relative(written(problem, basis, rank), expected) < EXACT
    assert basis.fallbacks == ()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_input_only_is_v2(shape: tuple[int, int], condition: float) -> None:
    made = layer(shape, condition)
    ours, v2 = made.problem("input-only"), made.problem("svd-llm-v2")
    basis, v2_basis = ours.basis(), v2.basis()
    for rank in ranks(shape):
        difference = written(ours, basis, rank) - written(v2, v2_basis, rank)
        weighted = (difference @ root(made.inputs)).norm()
        assert weighted < EXACT * (made.weight @ root(made.inputs)).norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_two_sided_is_the_dense_optimum(
    shape: tuple[int, int], condition: float, shrinkage: float
) -> None:
    made = layer(shape, condition)
    metric = made.metric("fisher", shrinkage)
    problem = made.problem("fisher", shrinkage)
    basis = problem.basis()
    losses = made.optimal_losses(metric)
    for rank in ranks(shape):
        found = made.squared_loss(metric, written(problem, basis, rank))
        assert found == pytest.approx(losses[rank], rel=EXACT, abs=ROUNDING * losses[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_two_sided_is_the_very_matrix_of_the_dense_optimum(shape: tuple[int, int]) -> None:
    made = layer(shape)
    problem = made.problem("fisher")
    basis = problem.basis()
    for rank in ranks(shape):
        expected = made.optimum(made.metric("fisher"), rank)
        assert relative(written(problem, basis, rank), expected) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_two_sided_beats_input_only_where_gradients_matter(shape: tuple[int, int]) -> None:
    made = layer(shape)
    metric = made.metric("fisher")
    rank = min(shape) // 2
    losses = []
    for truncation in ("fisher", "input-only"):
        problem = made.problem(truncation)
        losses.append(made.squared_loss(metric, written(problem, problem.basis(), rank)))
    assert losses[0] < 0.9 * losses[1]


# --- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_eigenvalues_are_the_terms_of_the_optimal_loss(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    made = layer(shape, condition)
    expected = made.optimal_losses(made.metric(truncation))
    dropped = tails(made.problem(truncation).basis().eigenvalues)
    assert dropped == pytest.approx(expected, rel=EXACT, abs=ROUNDING * expected[0])


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_achieved_loss_is_the_dropped_eigenvalues(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    problem = layer(shape, condition).problem(truncation)
    basis = problem.basis()
    whole = float(basis.eigenvalues.sum())
    for rank in ranks(shape):
        dropped = float(basis.eigenvalues[rank:].sum())
        assert problem.loss(basis, rank) == pytest.approx(dropped, rel=EXACT, abs=ROUNDING * whole)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_achieved_loss_is_measured_on_the_factors(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    """A spoilt basis shows, which the eigenvalues would hide."""
    made = layer(shape)
    problem = made.problem(truncation)
    spoilt = problem.basis()
    spoilt = spoilt._replace(left=spoilt.left * 1.1)
    rank = min(shape) // 2
    expected = made.squared_loss(made.metric(truncation), written(problem, spoilt, rank))
    assert problem.loss(spoilt, rank) == pytest.approx(expected, rel=EXACT)
    assert expected > 1.05 * float(spoilt.eigenvalues[rank:].sum())


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_full_rank_loses_nothing(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    made = layer(shape, condition)
    problem, metric = made.problem(truncation), made.metric(truncation)
    whole = written(problem, problem.basis(), min(shape))
    assert made.squared_loss(metric, whole) <= ROUNDING * made.optimal_losses(metric)[0]


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_full_rank_is_exact(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    """Past 1e4, directions of W that hardly move the loss are only as exact as the loss needs."""
    problem = layer(shape, condition).problem(truncation)
    whole = written(problem, problem.basis(), min(shape))
    assert relative(whole, problem.weight) < EXACT


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_of_the_statistics_does_not_change_the_matrix(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    made = layer(shape)
    scaled = made._replace(inputs=made.inputs * 1e-18, gradients=made.gradients * 1e-18)
    matrices = []
    for one in (made, scaled):
        problem = one.problem(truncation)
        matrices.append(written(problem, problem.basis(), min(shape) // 2))
    assert relative(matrices[1], matrices[0]) < EXACT


# --- storage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_basis_survives_float32(
    truncation: Truncation, shape: tuple[int, int], condition: float
) -> None:
    """Rounding a basis to float32 costs no more than rounding W itself would.

    Column j of A and row j of B are each off by at most eps / 2 of their norm, which the objective
    weighs to eps / 2 ||G_s^1/2|| ||W|| ||C^1/2||: k such pairs, with independent errors.
    """
    made = layer(shape, condition)
    metric = made.metric(truncation)
    problem = made.problem(truncation)
    basis = problem.basis()
    stored = basis._replace(left=basis.left.float().double(), right=basis.right.float().double())
    norm = root(metric).norm() * made.weight.norm() * root(made.inputs).norm()
    for rank in ranks(shape):
        before = made.squared_loss(metric, written(problem, basis, rank)) ** 0.5
        after = made.squared_loss(metric, written(problem, stored, rank)) ** 0.5
        assert after - before < torch.finfo(torch.float32).eps * rank**0.5 * float(norm)
        assert problem.loss(stored, rank) == pytest.approx(after**2, rel=EXACT, abs=1e-12)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_of_a_rank_are_a_slice_of_one_basis(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    problem = layer(shape).problem(truncation)
    basis = problem.basis()
    a, b = basis.factors(problem.weight, 5)
    small_a, small_b = basis.factors(problem.weight, 2)
    torch.testing.assert_close(small_a, a[:, :2], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(small_b, b[:2], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("truncation", "shape", "through"),
    [
        ("fisher", (12, 20), "right"),
        ("fisher", (16, 16), "right"),
        ("fisher", (20, 12), "left"),
        ("svd-llm", (12, 20), "none"),
    ],
)
def test_only_the_smaller_side_is_stored(
    truncation: Truncation, shape: tuple[int, int], through: str
) -> None:
    basis = layer(shape).problem(truncation).basis()
    assert basis.through == through
    if through != "none":
        assert basis.left.shape == basis.right.shape == (min(shape), min(shape))
