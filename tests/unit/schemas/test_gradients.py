"""The number of gradient windows that a run takes if none is asked for."""

import json
from typing import Any

import pytest

from schemas.request.config import RunConfig
from schemas.request.gradients import with_gradients
from tests.documents import ROOT
from workers.model.inspection import planned

CONFIGS = ROOT / "tests" / "configs"


def windows(model: str, **calibration: Any) -> int | None:
    path = CONFIGS / f"{model}.json"
    spec = planned(json.loads(path.read_text(encoding="utf-8")), str(path), "BF16")
    config = RunConfig(model=model, ratio=(0.2,), output="out", calibration=calibration)
    return with_gradients(config, spec).calibration.gradient_samples


@pytest.mark.parametrize(
    ("model", "calibration", "expected"),
    [
        ("llama-3-70b", {}, 64 * 8192 // 512),
        ("llama-3-70b", {"gradient_length": 2048}, 64 * 8192 // 2048),
        ("llama-3-70b", {"samples": 128}, 128 * 2048 // 512),  # what the forward moments take
        ("llama-3-70b", {"samples": 8}, 16 * 8192 // 512),  # but no fewer than are advised
        ("llama-3-70b", {"samples": 8, "gradient_samples": 5}, 5),
    ],
)
def test_gradients_take_64_tokens_a_dimension_and_no_more_than_there_are(
    model: str, calibration: dict[str, int], expected: int
) -> None:
    assert windows(model, **calibration) == expected
