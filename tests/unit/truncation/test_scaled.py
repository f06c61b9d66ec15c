"""SVD, ASVD and FWSVD against their papers' formulas, on statistics of a layer that is run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from schemas.request.methods import Truncation
from schemas.run.moments import backward_tap, forward_tap
from tests.layers import SHAPES, gaussian, ranks, relative, written
from tests.spectra import matrix
from workers.calibration.moments import Moment, MomentAccumulator
from workers.truncation.problem import Problem

EXACT = 1e-6  # statistics are summed in float32
WINDOWS, TOKENS = 5, 30


def observed(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """W (m, n), inputs (windows, tokens, n) of unequal size, gradients (windows, tokens, m)."""
    m, n = shape
    sizes = torch.logspace(-1, 1, n, dtype=torch.float64)
    return (
        gaussian(1, m, n),
        gaussian(2, WINDOWS, TOKENS, n) * sizes,
        gaussian(3, WINDOWS, TOKENS, m),
    )


def by_magnitude(x: Tensor, g: Tensor) -> Tensor:
    return x.abs().flatten(0, 1).mean(0).sqrt()


def by_fisher(x: Tensor, g: Tensor) -> Tensor:
    """The root of the sum over outputs of the mean square of dL/dW, window by window."""
    squares = [torch.einsum("ti,tj->ij", g[w], x[w]).square() for w in range(WINDOWS)]
    found: Tensor = torch.stack(squares).mean(0).sum(0).sqrt()
    return found


SCALES: dict[Truncation, Callable[[Tensor, Tensor], Tensor]] = {
    "svd": lambda x, g: torch.ones(x.shape[-1], dtype=torch.float64),
    "asvd": by_magnitude,
    "fwsvd": by_fisher,
}


def moment(rows: list[Tensor]) -> Moment:
    sums = MomentAccumulator((1, rows[0].shape[-1]))
    for segment, part in enumerate(rows):
        sums.add(part.float(), segment)
    return sums.sums().mean("tap")


def problem(truncation: Truncation, shape: tuple[int, int]) -> Problem:
    """As calibration states it."""
    weight, x, g = observed(shape)
    return Problem(
        truncation=truncation,
        weight=weight,
        forward=moment(list(x.abs().sqrt())),
        backward=moment(list(g.mT @ x)) if truncation == "fwsvd" else None,
    )


@pytest.mark.parametrize("truncation", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_svd_of_the_scaled_matrix(truncation: Truncation, shape: tuple[int, int]) -> None:
    weight, x, g = observed(shape)
    scales = SCALES[truncation](x, g)
    u, s, vt = torch.linalg.svd(weight * scales, full_matrices=False)
    made = problem(truncation, shape)
    basis = made.basis()
    assert not basis.fallbacks
    for rank in ranks(shape):
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank] / scales
        assert relative(written(made, basis, rank), expected) < EXACT
        dropped = float(basis.eigenvalues[rank:].sum())
        assert made.loss(basis, rank) == pytest.approx(dropped, rel=1e-9)


@pytest.mark.parametrize("truncation", SCALES)
def test_its_loss_is_of_no_unit_that_allocations_compare(truncation: Truncation) -> None:
    assert problem(truncation, (12, 20)).nats is None


@pytest.mark.parametrize("truncation", ["asvd", "fwsvd"])
def test_an_input_that_is_never_there_is_recorded(truncation: Truncation) -> None:
    made = problem(truncation, (12, 20))
    for one in (made.forward, made.backward):
        if one is not None and one.matrix is not None:
            one.matrix[0, 3] = 0.0
    basis = made.basis()
    assert basis.fallbacks == ("1 of 20 inputs have a scale below 1e-06 of the largest: raised",)
    assert bool(written(made, basis, 6).isfinite().all())


@pytest.mark.parametrize("truncation", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_any_input_a_matrix_is_stored_as_zero_and_costs_nothing(
    truncation: Truncation, shape: tuple[int, int]
) -> None:
    made = problem(truncation, shape)
    none = Moment(torch.zeros(1, shape[1]), 0.0, WINDOWS)
    made = made._replace(forward=none, backward=made.backward and none)
    basis = made.basis()
    assert basis.fallbacks == ("no output on the calibration text: stored as zero",)
    assert not written(made, basis, 1).any()
    assert made.loss(basis, 1) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_gradient_fwsvd_is_plain_svd_and_says_so(shape: tuple[int, int]) -> None:
    none = Moment(torch.zeros(1, shape[1]), 0.0, WINDOWS)
    made, plain = problem("fwsvd", shape)._replace(backward=none), problem("svd", shape)
    basis = made.basis()
    assert basis.fallbacks == ("no gradient reaches this matrix: cut as plain SVD",)
    rank = min(shape) // 2
    assert torch.equal(written(made, basis, rank), written(plain, plain.basis(), rank))
    assert made.loss(basis, rank) == plain.loss(plain.basis(), rank)


def test_a_moment_of_a_diagonal_is_that_of_the_square() -> None:
    parts = [part.float() for part in gaussian(4, 3, 50, 7)]
    square = MomentAccumulator((7, 7))
    for segment, part in enumerate(parts):
        square.add(part, segment)
    full, found = square.sums().mean("tap"), moment(parts)
    assert full.matrix is not None
    assert found.matrix is not None
    torch.testing.assert_close(found.matrix[0], full.matrix.diagonal())
    assert found.trace == pytest.approx(full.trace, rel=EXACT)


def test_its_taps_are_vectors_that_matrices_of_one_input_share() -> None:
    q, k = (
        matrix(0, 8, 16, f"self_attn.{name}").model_copy(update={"reads": "self_attn.q_proj"})
        for name in ("q_proj", "k_proj")
    )
    names = {forward_tap(q, "svd").name, forward_tap(k, "asvd").name, forward_tap(k, "fwsvd").name}
    assert len(names) == 1
    assert forward_tap(q, "svd").shape == backward_tap(q, "fwsvd").shape == (1, 16)
    assert forward_tap(q, "svd").name != forward_tap(q, "svd-llm").name
