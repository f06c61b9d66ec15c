"""How a loss is weighed: in nats, by gradients that are shrunk, with a remark on few tokens."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from schemas.request.methods import Truncation
from tests.layers import SHAPES, layer
from workers.calibration.moments import Moment
from workers.truncation.two_sided import Metric, metric_of

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

    def metric(self, shrinkage: float | None = None) -> Metric:
        on_input = self.weight.shape[0] > self.weight.shape[1]
        rows = self.rows @ self.weight if on_input else self.rows
        moment = Moment(
            rows.T @ rows / len(rows),
            trace=float(self.rows.square().sum()) / len(rows),
            tokens=len(rows),
            fourth=float(rows.square().sum(1).square().mean()),
        )
        return metric_of(self.weight, moment, shrinkage)

    def error(self, metric: Tensor) -> Tensor:
        """|G_s - G|_F^2 of metrics G_s (..., k, k), on the side of W that is factorised."""
        weight = self.weight
        on_input = weight.shape[0] > weight.shape[1]
        true = weight.T @ self.true @ weight if on_input else self.true
        return (metric - true).square().sum((-2, -1))


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
    shares = torch.linspace(0, 1, 51, dtype=torch.float64)[:, None, None]
    chosen, fixed = torch.zeros(()), torch.zeros(51)
    for seed in range(40):
        one = gradients(shape, tokens, seed)
        none, whole = (one.metric(s).matrix for s in (0.0, 1.0))
        fixed = fixed + one.error(torch.lerp(none, whole, shares))
        chosen = chosen + one.error(one.metric().matrix)
    assert chosen < 1.15 * fixed.min()


@pytest.mark.parametrize("shape", SHAPES)
def test_more_tokens_shrink_less(shape: tuple[int, int]) -> None:
    found = [gradients(shape, tokens).metric().shrinkage or 0.0 for tokens in (10, 100, 10_000)]
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
    assert made.metric().shrinkage == pytest.approx(float(expected))


def test_a_shrinkage_that_is_asked_for_is_taken() -> None:
    assert gradients((12, 20), 30).metric(0.25).shrinkage == 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_tells_its_shrinkage(shape: tuple[int, int]) -> None:
    made = layer(shape)
    assert made.problem("fisher", 0.3).basis().shrinkage == 0.3
    assert made.problem("input-only", 0.3).basis().shrinkage is None


# --- inputs that are taken to be less correlated ------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_lose_a_part_of_their_correlation(shape: tuple[int, int], share: float) -> None:
    """From the smaller side and the diagonal alone, the basis is that of the whole moment C_s."""
    made = layer(shape)
    problem = made.problem("fisher", input_shrinkage=share)
    found, expected = problem.basis(), made.less_correlated(share).problem("fisher").basis()
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=0)
    rank = min(shape) // 2
    left, right = found.factors(made.weight, rank), expected.factors(made.weight, rank)
    torch.testing.assert_close(left[0] @ left[1], right[0] @ right[1], rtol=0, atol=1e-8)
    assert problem.basis(problem.root()).eigenvalues.equal(found.eigenvalues)
    assert problem.loss(found, rank) == pytest.approx(float(found.eigenvalues[rank:].sum()))


@pytest.mark.parametrize("truncation", ["svd-llm", "svd-llm-v2", "input-only"])
def test_other_truncations_take_the_moment_as_it_is(truncation: Truncation) -> None:
    made = layer((12, 20))
    found = made.problem(truncation, input_shrinkage=0.5).basis()
    assert found.eigenvalues.equal(made.problem(truncation).basis().eigenvalues)


def test_the_moment_itself_stays_as_it_was() -> None:
    made = layer((20, 12))
    before = made.inputs.clone()
    made.problem("fisher", input_shrinkage=0.5).basis()
    assert made.inputs.equal(before)


def test_without_the_diagonal_an_output_moment_is_not_shrunk_silently() -> None:
    problem = layer((12, 20)).problem("fisher", input_shrinkage=0.5)._replace(features=None)
    with pytest.raises(ValueError, match="diagonal of the input moment"):
        problem.basis()
