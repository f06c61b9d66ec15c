"""Statistics that are singular, dead, rounded, empty or no numbers."""

import pytest
import torch

from schemas.errors import NumericsError
from schemas.request.methods import Truncation
from tests.layers import (
    EXACT,
    PLENTY,
    ROUNDING,
    SHAPES,
    TRUNCATIONS,
    Layer,
    gaussian,
    layer,
    ranks,
    written,
)
from workers.calibration.moments import Moment
from workers.truncation.basis import Basis


def singular_layer(shape: tuple[int, int], tokens: int) -> Layer:
    """Moments of fewer tokens than either side has features."""
    m, n = shape
    x, g = gaussian(4, tokens, n), gaussian(5, tokens, m)
    return Layer(gaussian(1, m, n), x.T @ x / tokens, g.T @ g / tokens)


def is_finite(basis: Basis) -> bool:
    parts = (basis.eigenvalues, basis.left, basis.right)
    return all(bool(torch.isfinite(part).all()) for part in parts)


# --- singular, dead and rounded statistics ----------------------------------------------------


@pytest.mark.parametrize("truncation", ["svd-llm-v2", "input-only", "fisher"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_singular_moments_cost_no_optimality(
    truncation: Truncation, shape: tuple[int, int], tokens: int
) -> None:
    made = singular_layer(shape, tokens)
    problem = made.problem(truncation)
    metric = made.metric(truncation)
    basis = problem.basis()
    losses = made.optimal_losses(metric)
    assert len(basis.eigenvalues) >= tokens
    for rank in {1, tokens}:
        found = made.squared_loss(metric, written(problem, basis, rank))
        assert found == pytest.approx(losses[rank], rel=EXACT, abs=ROUNDING * losses[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_v1_adds_the_least_ridge_to_a_singular_gram_and_says_so(shape: tuple[int, int]) -> None:
    made = singular_layer(shape, 7)
    problem = made.problem("svd-llm")
    basis = problem.basis()
    [note] = basis.fallbacks
    assert "ridge of 1e-10 mean diagonal" in note
    ridge = 1e-10 * made.inputs.diagonal().mean() * torch.eye(shape[1], dtype=torch.float64)
    ridged = made._replace(inputs=made.inputs + ridge)
    expected = ridged.optimal_losses(made.metric("svd-llm"))
    rank = 3
    assert float(basis.eigenvalues[rank:].sum()) == pytest.approx(expected[rank], rel=EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_v2_counts_the_directions_that_the_text_leaves_empty(shape: tuple[int, int]) -> None:
    [note] = singular_layer(shape, 7).problem("svd-llm-v2").basis().fallbacks
    assert note.startswith(f"at least {shape[1] - 7} of {shape[1]} directions")


def test_a_singular_input_moment_is_recorded_on_the_input_side() -> None:
    [note] = singular_layer((20, 12), 7).problem("fisher").basis().fallbacks
    assert note.startswith("at least 5 of 12 directions")


def test_an_unshrunk_singular_gradient_moment_is_recorded_and_optimal() -> None:
    made = singular_layer((12, 20), 7)
    problem = made.problem("fisher", shrinkage=0.0)
    basis = problem.basis()
    assert any("not positive definite" in note for note in basis.fallbacks)
    losses = made.optimal_losses(made.gradients)
    found = made.squared_loss(made.gradients, written(problem, basis, 3))
    assert found == pytest.approx(losses[3], rel=EXACT)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dead_input_channels_cost_nothing(truncation: Truncation, shape: tuple[int, int]) -> None:
    made = layer(shape)
    alive = torch.ones(shape[1], dtype=torch.float64)
    alive[[0, 4]] = 0.0
    made = made._replace(inputs=made.inputs * alive * alive[:, None])
    problem, metric = made.problem(truncation), made.metric(truncation)
    basis = problem.basis()
    losses = made.optimal_losses(metric)
    for rank in ranks(shape)[:2]:
        found = made.squared_loss(metric, written(problem, basis, rank))
        # v1 minimises the ridged Gram: 1e-10 of the mean diagonal, times ||W||^2.
        assert found == pytest.approx(losses[rank], rel=EXACT, abs=1e-9 * losses[0])


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dead_outputs_stay_dead(truncation: Truncation, shape: tuple[int, int]) -> None:
    made = layer(shape)
    weight = made.weight.clone()
    weight[3] = 0.0
    problem = made._replace(weight=weight).problem(truncation)
    a, b = problem.basis().factors(weight, min(shape) // 2)
    assert float((a @ b)[3].norm()) <= EXACT * float(weight.norm())


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_that_rounding_made_indefinite_give_finite_bases(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    """Float32 moments of few tokens have negative eigenvalues of 1e-8 of the largest."""
    exact = singular_layer(shape, 5)
    stated = exact.problem(truncation)
    rounded = []
    for moment in (stated.forward, stated.backward):
        assert moment is not None
        assert moment.matrix is not None
        rounded.append(moment._replace(matrix=moment.matrix.float()))
    problem = stated._replace(forward=rounded[0], backward=rounded[1])
    forward = rounded[0].matrix
    assert forward is not None
    assert float(torch.linalg.eigvalsh(forward.double())[0]) < 0
    basis = problem.basis()
    assert is_finite(basis)
    assert bool((basis.eigenvalues >= 0).all())
    metric = exact.metric(truncation)
    whole = exact.squared_loss(metric, torch.zeros_like(exact.weight))
    # 5 directions hold everything but float32's rounding of the moments (and v1's ridge).
    assert exact.squared_loss(metric, written(problem, basis, 5)) < 1e-5 * whole


def test_v1_refuses_a_gram_that_no_ridge_makes_definite() -> None:
    made = layer((12, 20))
    with pytest.raises(NumericsError, match=r"ridge of 0\.1"):
        made._replace(inputs=torch.diag(gaussian(6, 20))).problem("svd-llm").basis()


# --- nothing to see ---------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_any_activation_a_matrix_is_stored_as_zero(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    made = layer(shape)
    problem = made._replace(inputs=torch.zeros_like(made.inputs)).problem(truncation)
    basis = problem.basis()
    assert basis.fallbacks == ("no output on the calibration text: stored as zero",)
    assert not written(problem, basis, 1).any()
    assert problem.loss(basis, 1) == 0.0


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_zero_weight_stays_zero(truncation: Truncation, shape: tuple[int, int]) -> None:
    made = layer(shape)
    problem = made._replace(weight=torch.zeros_like(made.weight)).problem(truncation)
    basis = problem.basis()
    assert is_finite(basis)
    assert not basis.eigenvalues.any()
    assert not written(problem, basis, 1).any()
    assert problem.loss(basis, 1) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_gradient_fisher_is_input_only_and_says_so(shape: tuple[int, int]) -> None:
    made = layer(shape)
    made = made._replace(gradients=torch.zeros_like(made.gradients))
    fisher, plain = made.problem("fisher"), made.problem("input-only")
    basis = fisher.basis()
    assert basis.fallbacks == ("no gradient reaches this matrix: cut as input-only",)
    rank = min(shape) // 2
    assert torch.equal(written(fisher, basis, rank), written(plain, plain.basis(), rank))
    assert fisher.loss(basis, rank) == plain.loss(plain.basis(), rank)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(truncation: Truncation, value: float) -> None:
    problem = layer((12, 20)).problem(truncation)
    problem.weight[2, 3] = value
    with pytest.raises(NumericsError, match="NaN or Inf"):
        problem.basis()


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("which", ["inputs", "gradients"])
def test_a_moment_that_is_not_finite_is_refused(
    truncation: Truncation, shape: tuple[int, int], which: str
) -> None:
    made = layer(shape)
    spoilt = made._asdict()[which].clone()
    spoilt[2, 2] = float("nan")
    problem = made._replace(**{which: spoilt}).problem(truncation)
    with pytest.raises(NumericsError, match="a moment holds NaN or Inf"):
        problem.basis()


def test_a_moment_that_was_not_taken_is_refused() -> None:
    problem = layer((12, 20)).problem("fisher")
    with pytest.raises(NumericsError, match="not accumulated"):
        problem._replace(forward=Moment(None, 1.0, PLENTY)).basis()
