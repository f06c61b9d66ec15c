"""Pivoted factors are the same matrix in fewer numbers: W' = A B, row for row, to float64."""

import pytest
import torch
from torch import Tensor, nn

from runtime.configuration_lowrank import Matrix, tensor_shapes
from runtime.modeling_lowrank import LowRankLinear
from schemas.model.spec import Encoding, factor_parameters
from tests.layers import gaussian, relative
from tests.low_rank import random_factors
from workers.truncation.encoding import factors_of, pivoted_factors
from workers.truncation.pivoting import Pivoted, pivot

SHAPES = [
    (m, n, k)
    for m, n in [(1, 1), (1, 6), (6, 1), (7, 7), (9, 30), (30, 9), (64, 48)]
    for k in sorted({1, m // 2, m - 1, m} - {0})
]
STORABLE = [(m, n, k) for m, n, k in SHAPES if k <= n]

# Float64 rounding (2e-16), grown by max|T| over at most 64 terms: for random factors below 1e3.
EXACT = 1e-12


def factors(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    return gaussian(m, m, k), gaussian(n + 1, k, n)


def decoded(pivoted: Pivoted) -> Tensor:
    """W'[i] = concat(rows, T rows)[order[i]], as the docstring states it."""
    stacked = torch.cat([pivoted.rows, pivoted.interpolation @ pivoted.rows])
    return stacked[pivoted.order]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_no_row_is_lost(m: int, n: int, k: int) -> None:
    a, b = factors(m, n, k)
    assert relative(decoded(pivot(a, b)), a @ b) < EXACT


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_order_is_a_permutation(m: int, n: int, k: int) -> None:
    order = pivot(*factors(m, n, k)).order
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(m))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_it_takes_k_times_m_plus_n_less_k_parameters(m: int, n: int, k: int) -> None:
    pivoted = pivot(*factors(m, n, k))
    stored = pivoted.rows.numel() + pivoted.interpolation.numel()
    assert stored == k * (m + n - k) == factor_parameters("pivoted", k, m, n)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_rows_are_rows_of_the_matrix_itself(m: int, n: int, k: int) -> None:
    a, b = factors(m, n, k)
    pivoted = pivot(a, b)
    places = torch.cat([(pivoted.order == row).nonzero()[0] for row in range(k)])
    assert torch.equal(pivoted.rows, a[places] @ b)


@pytest.mark.parametrize(("m", "n", "k"), STORABLE)
@pytest.mark.parametrize("bias", [False, True])
def test_the_shipped_layer_computes_it(m: int, n: int, k: int, bias: bool) -> None:
    a, b = factors(m, n, k)
    pivoted = pivot(a, b)
    module = LowRankLinear(Matrix("pivoted", k), m, n, bias).double()
    state = {"down.weight": pivoted.rows, "order": pivoted.order}
    if k < m:
        state["up.weight"] = pivoted.interpolation
    offset = gaussian(3, m)
    if bias:
        state["offset"] = offset
    module.load_state_dict(state, strict=True)
    x = gaussian(4, 5, n)
    expected = x @ (a @ b).T + (offset if bias else 0.0)
    with torch.no_grad():
        assert relative(module(x), expected) < EXACT


@pytest.mark.parametrize(("m", "n", "k"), STORABLE)
def test_what_is_pivoted_by_columns_is_the_same_matrix_of_the_same_size(
    m: int, n: int, k: int
) -> None:
    a, b = factors(m, n, k)
    stored = pivoted_factors(a, b, torch.float64, columns=True)
    shapes = tensor_shapes("pivoted-columns", k, m, n, bias=False)
    assert {name: tuple(stored.tensors[name].shape) for name in shapes} == shapes
    sizes = [stored.tensors[name].numel() for name in shapes if name != "order"]
    assert sum(sizes) == factor_parameters("pivoted", k, m, n)
    pivots = stored.tensors["order"][:k]
    torch.testing.assert_close(stored.tensors["up.weight"], (a @ b)[:, pivots])

    module = LowRankLinear(Matrix(stored.encoding, k), m, n, bias=False).double()
    module.load_state_dict({name: stored.tensors[name] for name in shapes})
    x = gaussian(4, 5, n)
    with torch.no_grad():
        assert relative(module(x), x @ (a @ b).T) < EXACT
    assert stored.rounding < EXACT


@pytest.mark.parametrize(("m", "n", "k"), STORABLE)
@pytest.mark.parametrize("encoding", ["plain", "pivoted", "pivoted-columns"])
def test_factors_of_what_is_stored_are_of_what_the_layer_computes(
    encoding: Encoding, m: int, n: int, k: int
) -> None:
    matrix, linear = Matrix(encoding, k), nn.Linear(n, m, bias=False)
    tensors, weight = random_factors(matrix, linear)
    a, b = factors_of(encoding, tensors)
    assert (a.shape, b.shape) == ((m, k), (k, n))
    torch.testing.assert_close((a @ b).float(), weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 29])
def test_pivoting_keeps_rows_that_are_large(k: int) -> None:
    """Rows of 1e-8 first would make T of 1e8, were they not moved."""
    a, b = factors(30, 9, k)
    a[:k] *= 1e-8
    if k == 29:
        a[k:] *= 1e8
    pivoted = pivot(a, b)
    assert pivoted.magnitude < 1e3
    assert relative(decoded(pivoted), a @ b) < EXACT


def test_magnitude_is_the_largest_interpolation_weight() -> None:
    interpolation = torch.tensor([[1.0, -7.5], [2.0, 0.0]])
    pivoted = Pivoted(torch.zeros(2, 3), interpolation, torch.arange(4))
    assert pivoted.magnitude == 7.5


def test_a_square_factor_interpolates_nothing() -> None:
    assert pivot(*factors(6, 4, 6)).magnitude == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_magnitude_is_past_every_bound_where_it_is_not_finite(value: float) -> None:
    interpolation = torch.tensor([[1.0, value]])
    pivoted = Pivoted(torch.zeros(2, 3), interpolation, torch.arange(3))
    assert pivoted.magnitude == float("inf")


@pytest.mark.parametrize(("m", "n", "k"), [(5, 4, 1), (9, 30, 4), (6, 6, 6)])
def test_a_matrix_of_zeros_stays_one(m: int, n: int, k: int) -> None:
    pivoted = pivot(torch.zeros(m, k).double(), torch.zeros(k, n).double())
    assert pivoted.magnitude == 0.0
    assert not decoded(pivoted).any()


@pytest.mark.parametrize("empty", [[0], [2], [1, 3]])
def test_columns_of_zeros_lose_nothing(empty: list[int]) -> None:
    """SVD-LLM gives such factors if W has less than full rank."""
    a, b = factors(9, 30, 4)
    a[:, empty] = 0.0
    assert relative(decoded(pivot(a, b)), a @ b) < EXACT
