"""What a request for fewer bits may ask for."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from schemas.request.comparison import ComparisonConfig
from schemas.request.quantization import FEW_BITS, QuantizationConfig, Scheme


def asked(**fields: Any) -> QuantizationConfig:
    given = {"checkpoint": "m", "scheme": "W4A16", "output": "out"}
    return QuantizationConfig.model_validate(given | fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheme": "NVFP4"}, "name a text by --calibration"),
        ({"scheme": "W8A8", "group_size": 64}, "W8A8 has groups of its own"),
        ({"damping": 0.1, "calibration": None}, "damping: for the calibration only; add --cal"),
        ({"device": "cpu", "calibration_samples": 8}, "calibration_samples, device: for the cal"),
    ],
)
def test_fields_fit_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        asked(**wrong)


def test_a_calibration_has_all_of_its_options() -> None:
    assert asked(calibration="a.txt", damping=0.1, dtype="auto").damping == 0.1
    assert asked(seed=1, group_size=32, ignore="mlp.*").calibration == ()


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_a_comparison_calibrates_where_bits_are_few(scheme: Scheme) -> None:
    given = {"model": "m", "output": "out", "evaluate": "a.txt", "cluster": {"device": "cpu"}}
    found = ComparisonConfig.model_validate(given).quantised("m", scheme, "name")
    assert (found.device, bool(found.calibration)) == (
        ("cpu", True) if scheme in FEW_BITS else ("auto", False)
    )
