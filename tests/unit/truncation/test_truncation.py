"""Every truncation against the papers' formulas, written out in float64.

The oracle is Eckart-Young: the best rank-k W' under ||G^1/2 (W - W') C^1/2||_F comes from the SVD
of G^1/2 W C^1/2, its squared loss is the sum of the dropped squared singular values.
"""

from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from schemas.errors import NumericsError
from schemas.request.methods import Truncation
from workers.calibration.moments import Moment
from workers.truncation.basis import Basis
from workers.truncation.problem import Problem
from workers.truncation.two_sided import Weighing, weigh

SHAPES = [(12, 20), (16, 16), (20, 12)]
CONDITIONS = [1.0, 1e4, 1e10]
SHRINKAGES = [0.001, 0.1, 1.0]
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)
PAPERS: tuple[Truncation, ...] = ("svd-llm", "svd-llm-v2")
PLENTY = 10**6

# Both sides are float64 and rounding grows at most with the root of the condition number, 1e5.
EXACT = 1e-6
# What float64 leaves of a loss that is zero in exact arithmetic, as a part of the whole energy.
ROUNDING = 1e-12


class Layer(NamedTuple):
    """W (m, n), the second moments C (n, n) of its inputs and G (m, m) of its output gradients."""

    weight: Tensor
    inputs: Tensor
    gradients: Tensor

    def problem(
        self,
        truncation: Truncation,
        shrinkage: float = 0.1,
        tokens: int = PLENTY,
        gradient_tokens: int = PLENTY,
    ) -> Problem:
        """As calibration would state it: moments of the smaller side, but X^T X for the papers'."""
        weight, inputs, gradients = self
        on_input = weight.shape[0] > weight.shape[1]
        forward = inputs if truncation in PAPERS or on_input else weight @ inputs @ weight.T
        backward = weight.T @ gradients @ weight if on_input else gradients
        return Problem(
            truncation=truncation,
            weight=weight,
            forward=Moment(forward, float(forward.trace()), tokens),
            backward=Moment(backward, float(gradients.trace()), gradient_tokens),
            shrinkage=shrinkage,
        )

    def metric(self, truncation: Truncation, shrinkage: float = 0.1) -> Tensor:
        """G_s = (1 - s) G + s (tr G / m) I for fisher, else I."""
        size = self.weight.shape[0]
        identity = torch.eye(size, dtype=torch.float64)
        if truncation != "fisher":
            return identity
        mean = self.gradients.trace() / size
        return (1 - shrinkage) * self.gradients + shrinkage * mean * identity

    def squared_loss(self, metric: Tensor, written: Tensor) -> float:
        """||G_s^1/2 (W - W') C^1/2||_F^2."""
        error = root(metric) @ (self.weight - written) @ root(self.inputs)
        return float(error.square().sum())

    def optimal_losses(self, metric: Tensor) -> list[float]:
        """The least squared loss at rank 0, 1, ..., min(m, n)."""
        singular = torch.linalg.svdvals(root(metric) @ self.weight @ root(self.inputs))
        return tails(singular.square())

    def optimum(self, metric: Tensor, rank: int) -> Tensor:
        """W' = G_s^-1/2 [G_s^1/2 W C^1/2]_k C^-1/2, both moments definite."""
        left, right = root(metric), root(self.inputs)
        u, s, vt = torch.linalg.svd(left @ self.weight @ right, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        written: Tensor = torch.linalg.solve(left, best) @ torch.linalg.inv(right)
        return written


def tails(terms: Tensor) -> list[float]:
    """The sums of all but the first 0, 1, ..., q terms."""
    return [float(terms[k:].sum()) for k in range(len(terms) + 1)]


def root(moment: Tensor) -> Tensor:
    """The symmetric positive semi-definite root."""
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return found


def gaussian(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def definite(seed: int, size: int, condition: float) -> Tensor:
    """Eigenvalues from 1 down to 1 / condition, in a random orthonormal basis."""
    vectors, _ = torch.linalg.qr(gaussian(seed, size, size))
    exponents = torch.linspace(0, 1, size, dtype=torch.float64)
    moment: Tensor = (vectors * condition**-exponents) @ vectors.T
    return moment


def layer(shape: tuple[int, int], condition: float = 1e4) -> Layer:
    """Definite moments of a given condition number, 1e3 for the gradients."""
    m, n = shape
    return Layer(gaussian(1, m, n), definite(2, n, condition), definite(3, m, 1e3))


def singular_layer(shape: tuple[int, int], tokens: int) -> Layer:
    """Moments of fewer tokens than either side has features."""
    m, n = shape
    x, g = gaussian(4, tokens, n), gaussian(5, tokens, m)
    return Layer(gaussian(1, m, n), x.T @ x / tokens, g.T @ g / tokens)


def written(problem: Problem, basis: Basis, rank: int) -> Tensor:
    a, b = basis.factors(problem.weight, rank)
    assert a.shape[1] == b.shape[0] == rank
    return a @ b


def ranks(shape: tuple[int, int]) -> tuple[int, ...]:
    small = min(shape)
    return 1, small // 2, small - 1


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def is_finite(basis: Basis) -> bool:
    parts = (basis.eigenvalues, basis.left, basis.right)
    return all(bool(torch.isfinite(part).all()) for part in parts)


# --- the optimum ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_v1_and_v2_are_one_matrix(shape: tuple[int, int], condition: float) -> None:
    problems = [layer(shape, condition).problem(truncation) for truncation in PAPERS]
    bases = [problem.basis() for problem in problems]
    for rank in ranks(shape):
        v1, v2 = (written(p, b, rank) for p, b in zip(problems, bases, strict=True))
        assert relative(v1, v2) < EXACT


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
    assert note.startswith(f"{shape[1] - 7} of {shape[1]} directions")


def test_a_singular_input_moment_is_recorded_on_the_input_side() -> None:
    [note] = singular_layer((20, 12), 7).problem("fisher").basis().fallbacks
    assert note.startswith("5 of 12 directions")


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


# --- what a problem says of itself ------------------------------------------------------------


def test_half_the_fisher_loss_is_in_nats() -> None:
    assert layer((12, 20)).problem("fisher").nats == 0.5


@pytest.mark.parametrize("truncation", ["svd-llm", "svd-llm-v2", "input-only"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loss_of_outputs_is_weighed_by_the_mean_gradient_energy(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    made = layer(shape)
    expected = 0.5 * float(made.gradients.trace()) / shape[0]
    assert made.problem(truncation).nats == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("truncation", ["svd-llm", "svd-llm-v2", "input-only"])
def test_without_gradients_there_are_no_nats(truncation: Truncation) -> None:
    assert layer((12, 20)).problem(truncation)._replace(backward=None).nats is None


def test_enough_statistics_need_no_remark() -> None:
    assert layer((12, 20)).problem("fisher", tokens=12, gradient_tokens=16 * 12).remarks() == ()


@pytest.mark.parametrize(("truncation", "size"), [("fisher", 12), ("svd-llm", 20)])
def test_a_forward_moment_of_fewer_tokens_than_features_is_remarked(
    truncation: Truncation, size: int
) -> None:
    remarks = layer((12, 20)).problem(truncation, tokens=size - 1).remarks()
    assert remarks == (f"forward moment of size {size} from {size - 1} tokens",)


@pytest.mark.parametrize("shape", SHAPES)
def test_few_gradient_tokens_are_remarked(shape: tuple[int, int]) -> None:
    tokens = 16 * min(shape) - 1
    remarks = layer(shape).problem("fisher", gradient_tokens=tokens).remarks()
    assert len(remarks) == 1
    assert remarks[0].startswith(f"gradient moment of size {min(shape)} from {tokens} tokens, ")
    assert remarks[0].endswith("a dimension; 16 are advised")


def test_a_trace_alone_needs_no_remark() -> None:
    assert layer((12, 20)).problem("input-only", gradient_tokens=1).remarks() == ()


# --- shrinkage ---------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Gradients g (t, m) of a layer W (m, n), and their true covariance G (m, m)."""

    weight: Tensor
    rows: Tensor
    true: Tensor

    def weighing(self, shrinkage: float | None = None) -> Weighing:
        on_input = self.weight.shape[0] > self.weight.shape[1]
        rows = self.rows @ self.weight if on_input else self.rows
        moment = Moment(
            rows.T @ rows / len(rows),
            trace=float(self.rows.square().sum()) / len(rows),
            tokens=len(rows),
            fourth=float(rows.square().sum(1).square().mean()),
        )
        size = min(self.weight.shape)
        return weigh(self.weight, torch.eye(size, dtype=torch.float64), moment, shrinkage)

    def error(self, shrinkage: float) -> float:
        """|G_s - G|_F^2 on the side of W that is factorised."""
        weight = self.weight
        on_input = weight.shape[0] > weight.shape[1]
        true = weight.T @ self.true @ weight if on_input else self.true
        return float((self.weighing(shrinkage).metric - true).square().sum())


def gradients(shape: tuple[int, int], tokens: int, seed: int = 0) -> Gradients:
    """Rows of a normal distribution whose variances fall from 1 to 0.01."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(0, -1, shape[0], dtype=torch.float64)
    rows = torch.randn(tokens, shape[0], generator=generator, dtype=torch.float64) * deviations
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Gradients(weight, rows, deviations.square().diag())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [20, 60, 400])
def test_the_shrinkage_that_is_chosen_is_near_the_best(shape: tuple[int, int], tokens: int) -> None:
    """Over draws, the error of the moment is within 15 % of that of the best fixed s."""
    drawn = [gradients(shape, tokens, seed) for seed in range(40)]
    chosen = [one.weighing().shrinkage for one in drawn]
    mean = sum(one.error(s) for one, s in zip(drawn, chosen, strict=True) if s is not None)
    best = min(sum(one.error(i / 50) for one in drawn) for i in range(51))
    assert mean < 1.15 * best


@pytest.mark.parametrize("shape", SHAPES)
def test_more_tokens_shrink_less(shape: tuple[int, int]) -> None:
    found = [gradients(shape, tokens).weighing().shrinkage or 0.0 for tokens in (10, 100, 10_000)]
    assert found[0] > found[1] > found[2] > 0
    assert found[2] < 0.02


def test_the_shrinkage_follows_ledoit_and_wolf() -> None:
    """Their estimator, written from the rows and not from the moments of them."""
    made = gradients((12, 20), 30)
    size = made.rows.shape[1]
    sample = made.rows.T @ made.rows / len(made.rows)
    mean = sample.trace() / size * torch.eye(size, dtype=torch.float64)
    spread = sum((torch.outer(g, g) - sample).square().sum() for g in made.rows)
    expected = spread / len(made.rows) ** 2 / (sample - mean).square().sum()
    assert made.weighing().shrinkage == pytest.approx(float(expected))


def test_a_shrinkage_that_is_asked_for_is_taken() -> None:
    assert gradients((12, 20), 30).weighing(0.25).shrinkage == 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_tells_its_shrinkage(shape: tuple[int, int]) -> None:
    made = layer(shape)
    assert made.problem("fisher", 0.3).basis().shrinkage == 0.3
    assert made.problem("input-only", 0.3).basis().shrinkage is None


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
