"""Ranks of SVD-LLM V2 against the formula of its paper."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest

from schemas.model.spec import Factors
from tests.spectra import FACTORS, budget_of, group, loss_of, matrix, power
from workers.allocation import MatrixLoss
from workers.allocation.svd_llm_v2 import svd_llm_v2
from workers.allocation.uniform import uniform


def paper_ratios(minima: Sequence[float], ratio: float) -> list[float]:
    """Algorithm 1 of arXiv 2503.12340: r_i = |G| R (1 / log L_i) / sum_j (1 / log L_j)."""
    inverse = [1 / math.log(value) for value in minima]
    return [len(minima) * ratio * value / sum(inverse) for value in inverse]


def minimum_loss(loss: MatrixLoss, ratio: float) -> float:
    """||(W - W') X||_F of plain factors at the uniform ratio, on the un-normalised Gram."""
    m, n = loss.matrix.out_features, loss.matrix.in_features
    rank = math.floor((1 - Fraction(str(ratio))) * m * n / (m + n))
    return math.sqrt(loss.tokens * math.fsum(loss.eigenvalues[rank:].tolist()))


def removed(loss: MatrixLoss, rank: int | None) -> float:
    m, n = loss.matrix.out_features, loss.matrix.in_features
    return 0.0 if rank is None else 1 - rank * (m + n) / (m * n)


def mixed(path: str, scales: Sequence[float]) -> list[MatrixLoss]:
    """As `group`, but every second matrix has twice as many rows."""
    shapes = [(60, 60), (120, 60)] * len(scales)
    return [
        loss_of(matrix(i, *shapes[i], path), power(60, 1.0, scale), tokens=10_000)
        for i, scale in enumerate(scales)
    ]


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


@pytest.mark.parametrize("ratio", [0.2, 0.4])
@pytest.mark.parametrize("scales", [[1, 1e3] * 3, [1e3, 1] * 3])
def test_v2_weighs_matrices_of_one_type_by_their_size(scales: list[float], ratio: float) -> None:
    """Ratios are to each other as the formula says, and what they remove is R of all."""
    losses = mixed("self_attn.k_proj", scales)
    inverse = [1 / math.log(minimum_loss(loss, ratio)) for loss in losses]
    sizes = [loss.matrix.size for loss in losses]
    of_all = sum(size * value for size, value in zip(sizes, inverse, strict=True))
    found = svd_llm_v2(losses, ratio, "plain")
    assert found.fallbacks == ()
    for loss, value in zip(losses, inverse, strict=True):
        expected = ratio * sum(sizes) * value / of_all
        actual = removed(loss, found.ranks[loss.matrix.name])
        assert expected - 1e-9 <= actual < expected + STEP


@pytest.mark.parametrize("ratio", [0.5, 0.8])
@pytest.mark.parametrize("small", [0, 1])
def test_v2_takes_the_size_of_a_clipped_matrix_off_what_is_left(ratio: float, small: int) -> None:
    losses = mixed("self_attn.k_proj", [1e2, 1e3, 1e2, 1e3])
    ceiling = minimum_loss(losses[small], ratio)
    eigenvalues = losses[small].eigenvalues * (1.0001 / ceiling) ** 2
    losses[small] = losses[small]._replace(eigenvalues=eigenvalues)
    found = svd_llm_v2(losses, ratio, "plain", max_ratio=0.9)
    assert found.fallbacks[0].startswith(f"{losses[small].matrix.name}: a ratio of ")
    left = budget_of(losses, ratio) - found.parameters(losses, "plain")
    assert 0 <= left < sum(sum(shape) for shape in [(60, 60), (120, 60)] * 2)  # a rank of each


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
    found = svd_llm_v2(group("mlp.up_proj", [1.0, 1e2, 1e4]), 0.0, factors)
    assert set(found.ranks.values()) == {None}
    assert found.fallbacks == ()
