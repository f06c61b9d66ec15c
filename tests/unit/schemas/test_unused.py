"""Settings that a truncation and an allocation do not use are refused, or reset."""

from typing import Any

import pytest

from schemas.request.groups import CalibrationConfig, NumericsConfig
from schemas.request.methods import METHODS, Method
from schemas.request.unused import as_used
from tests.unit.schemas.test_config import config, refusal

RANKS = {"method": "loss-aware-ranks"}


@pytest.mark.parametrize(
    ("fields", "group", "setting"),
    [
        ({}, "allocation", {"max_ratio": 0.5}),
        ({"method": "neurons"}, "allocation", {"min_ratio": 0.4}),
        ({"method": "svd-llm"}, "calibration", {"gradient_samples": 8}),
        ({"method": "svd-llm"}, "numerics", {"shrinkage": 0.1}),
        ({"method": "svd-llm"}, "numerics", {"input_shrinkage": 0.1}),
        ({"method": "svd-llm"}, "numerics", {"neuron_floor": 0.1}),
        ({"truncation": "input-only"}, "numerics", {"neuron_floor": 0.1}),
        ({"allocation": RANKS}, "numerics", {"neuron_floor": 0.1}),
        ({"method": "neurons"}, "numerics", {"pivot_bound": 10.0}),
    ],
)
def test_settings_of_another_way_to_cut_are_refused(
    fields: dict[str, Any], group: str, setting: dict[str, float]
) -> None:
    [name] = setting
    message = refusal(**fields, **{group: {**fields.get(group, {}), **setting}})
    assert f"{group}.{name} is of another truncation or allocation than " in message
    assert "leave it out" in message


@pytest.mark.parametrize(
    ("fields", "numerics"),
    [
        ({}, {"shrinkage": 0.1, "input_shrinkage": 0.1, "neuron_floor": 0.1}),
        ({"method": "neurons"}, {"shrinkage": 0.1, "input_shrinkage": 0.1, "neuron_floor": 0.1}),
        ({"truncation": "input-only"}, {"pivot_bound": 10.0, "input_shrinkage": 0.0}),
        ({"method": "svd-llm"}, {"pivot_bound": 10.0}),  # if its factors are exported pivoted
    ],
)
def test_settings_that_are_used_and_zeros_are_kept(
    fields: dict[str, Any], numerics: dict[str, float]
) -> None:
    made = config(**fields, numerics=numerics).numerics
    assert {name: getattr(made, name) for name in numerics} == numerics


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_use_can_be_reset(method: Method) -> None:
    calibration = CalibrationConfig(gradient_samples=8)
    numerics = NumericsConfig(shrinkage=0.1, input_shrinkage=0.1, neuron_floor=0.1, threads=2)
    row = METHODS[method]
    allocation = {"method": row["allocation"]}
    given = {**row, "allocation": allocation, "calibration": calibration, "numerics": numerics}
    made = config(**as_used(given))
    assert made.numerics.threads == 2
    assert (made.calibration == calibration) is made.needs_gradients
    assert (made.numerics == numerics) is made.prunes
