"""Quantised weights: what is stored stands for what was computed, and GPTQ loses less."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor  # type: ignore[import-untyped]
from torch import Tensor

from schemas.errors import NumericsError
from schemas.request.quantization import Scheme
from workers.quantisation.rounding import input_range, quantised
from workers.quantisation.schemes import scheme_for
from workers.truncation.encoding import Stored, plain_factors, rotated_factors

SCHEMES: tuple[Scheme, ...] = (
    *("W2A16", "W3A16", "W4A16", "W8A16", "W8A8", "FP8", "NVFP4A16", "NVFP4"),
)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moment() -> Tensor:
    """Of inputs that are far from independent."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(400, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize(
    ("columns", "asked", "group"),
    [
        (256, None, 128),
        (192, None, 64),
        (160, None, 32),
        (565, None, None),
        (256, 32, 32),
        (96, 64, None),
    ],
)
def test_a_group_divides_the_columns_or_is_the_row(
    columns: int, asked: int | None, group: int | None
) -> None:
    weights = scheme_for("W4A16", columns, asked).weights
    assert weights.group_size == group
    assert weights.strategy == ("group" if group else "channel")


def test_a_scheme_of_one_group_size_refuses_other_columns() -> None:
    with pytest.raises(ValueError, match="40 columns are no multiple of 16"):
        scheme_for("NVFP4A16", 40)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_stored_stands_for_the_rounded_weight(
    name: Scheme, calibrated: bool, weight: Tensor, moment: Tensor
) -> None:
    scheme = scheme_for(name, 64)
    found = quantised(weight, scheme, torch.float32, moment if calibrated else None)
    compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
    again = compressor.decompress(found.stored, scheme)["weight"].float()
    coarse = 2**-7 if name.startswith("NV") else 1e-6  # the library gives those as bfloat16
    torch.testing.assert_close(again, found.weight, rtol=coarse, atol=1e-6)
    assert sum(t.nbytes for t in found.stored.values()) < weight.nbytes
    assert 0 < found.error < {"2": 0.7, "3": 0.4, "4": 0.25}.get(name[1], 0.2)


@pytest.mark.parametrize("name", ["W8A16", "W8A8", "W4A16", "FP8"])
def test_a_row_that_is_almost_zero_stays_finite_in_float16(name: Scheme, weight: Tensor) -> None:
    weight[3] *= 1e-7
    found = quantised(weight, scheme_for(name, 64), torch.float16)
    assert found.weight.isfinite().all()
    assert 0 < found.error < 0.2
    assert all(t.float().isfinite().all() for t in found.stored.values())


def test_more_bits_lose_less(weight: Tensor) -> None:
    names: tuple[Scheme, ...] = ("W2A16", "W3A16", "W4A16", "W8A16")
    errors = [quantised(weight, scheme_for(name, 64), torch.float32).error for name in names]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", SCHEMES)
def test_gptq_loses_less_of_the_output_than_rounding_to_nearest(
    name: Scheme, weight: Tensor, moment: Tensor
) -> None:
    scheme = scheme_for(name, 64)
    near = quantised(weight, scheme, torch.float32).weight
    found = quantised(weight, scheme, torch.float32, moment)

    def lost(rounded: Tensor) -> float:
        rest = (weight - rounded).double()
        return float((rest @ moment.double() @ rest.T).trace())

    assert lost(found.weight) < 0.8 * lost(near)
    whole = (weight.double() @ moment.double() @ weight.double().T).trace()
    assert found.error == pytest.approx((lost(found.weight) / float(whole)) ** 0.5, rel=1e-4)


def test_gptq_rounds_to_nearest_where_inputs_are_independent(weight: Tensor) -> None:
    moment = torch.diag(torch.arange(1.0, 65.0))
    scheme = scheme_for("W4A16", 64)
    near = quantised(weight, scheme, torch.float32)
    found = quantised(weight, scheme, torch.float32, moment)
    assert torch.equal(found.weight, near.weight)


def test_an_input_that_is_always_zero_is_no_obstacle(weight: Tensor, moment: Tensor) -> None:
    moment[5], moment[:, 5] = 0, 0
    found = quantised(weight, scheme_for("W4A16", 64), torch.float32, moment)
    assert torch.isfinite(found.weight).all()


def test_a_moment_that_is_not_positive_definite_is_named(weight: Tensor) -> None:
    with pytest.raises(NumericsError, match="raise --damping"):
        quantised(weight, scheme_for("W4A16", 64), torch.float32, -torch.eye(64))


def test_only_nvfp4_stores_the_range_of_its_inputs() -> None:
    largest = torch.tensor(3.0)
    [(name, scale)] = input_range(scheme_for("NVFP4", 64), largest).items()
    assert name == "input_global_scale"
    assert float(scale) == pytest.approx(448 * 6 / 3.0)
    assert not any(input_range(scheme_for(name, 64), largest) for name in SCHEMES[:-1])


def test_rotated_factors_lose_less_to_few_bits() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(s, generator=generator).double() for s in ((96, 40), (40, 128)))
    scale = torch.logspace(-2, 2, 40, dtype=torch.float64)  # as factors of a truncation have
    a, b = a * scale, b / scale[:, None]
    rotated = rotated_factors(a, b, torch.float32, 64, seed=0)
    assert rotated.rounding < 1e-6
    assert {tail: tensor.shape for tail, tensor in rotated.tensors.items()} == {
        "down.weight": (64, 128),
        "up.weight": (96, 64),
    }

    def error(stored: Stored) -> float:
        near = []
        for tail in ("up.weight", "down.weight"):
            weight = stored.tensors[tail]
            near.append(quantised(weight, scheme_for("W4A16", weight.shape[1]), torch.float32))
        product = (near[0].weight @ near[1].weight).double()
        return float((product - a @ b).norm() / (a @ b).norm())

    assert error(rotated) < 0.5 * error(plain_factors(a, b, torch.float32))


@pytest.mark.parametrize("moment", [None, torch.eye(64), torch.zeros(64, 64)])
def test_a_layer_that_gives_nothing_has_no_error(moment: Tensor | None) -> None:
    found = quantised(torch.zeros(24, 64), scheme_for("W4A16", 64), torch.float32, moment)
    assert found.error == 0
    assert not found.weight.any()


def test_inputs_that_are_all_zero_leave_no_error(weight: Tensor) -> None:
    nothing = torch.zeros(64, 64)
    assert quantised(weight, scheme_for("W4A16", 64), torch.float32, nothing).error == 0
