"""The shares of texts, as people write them."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemas.request.groups import CalibrationConfig
from schemas.request.quantization import QuantizationConfig
from schemas.request.recovery import RecoveryConfig
from schemas.request.texts import share_of, shares_of, split, with_share
from workers.text.sources import KNOWN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c4", ("c4", 1.0)),
        ("c4:0.3", ("c4", 0.3)),
        ("/data/a.txt:2", ("/data/a.txt", 2.0)),
        ("s3://bucket/a.txt", ("s3://bucket/a.txt", 1.0)),
        ("s3://bucket/a.txt:0.5", ("s3://bucket/a.txt", 0.5)),
        ("a:b.txt", ("a:b.txt", 1.0)),
    ],
)
def test_a_share_follows_the_last_colon(text: str, expected: tuple[str, float]) -> None:
    assert share_of(text) == expected


@pytest.mark.parametrize("text", ["c4:0", "c4:-1", "c4:inf", "c4:nan"])
def test_a_share_is_above_zero(text: str) -> None:
    with pytest.raises(ValidationError, match="must be above zero"):
        RecoveryConfig.model_validate({"text": text})


def test_texts_are_separated_by_commas() -> None:
    assert RecoveryConfig.model_validate({"text": "a.txt:0.7, c4:0.3"}).text == (
        "a.txt:0.7",
        "c4:0.3",
    )


def test_the_mixture_is_web_code_and_instructions_and_has_a_share_itself() -> None:
    alone = RecoveryConfig.model_validate({"text": "mixed"}).text
    assert alone == ("fineweb-edu:0.5", "codeparrot:0.2", "ultrachat:0.3")
    assert {share_of(text)[0] for text in alone} <= KNOWN.keys()
    beside = RecoveryConfig.model_validate({"text": "a.txt, mixed:2"}).text
    assert beside == ("a.txt", "fineweb-edu:1", "codeparrot:0.4", "ultrachat:0.6")
    with pytest.raises(ValidationError, match="must be above zero"):
        RecoveryConfig.model_validate({"text": "mixed:0"})


def test_shares_of_one_text_are_added() -> None:
    assert shares_of(("a.txt:2", "c4", "a.txt")) == {"a.txt": 3.0, "c4": 1.0}


@pytest.mark.parametrize("name", ["c4", "/data/a.txt", "a:b.txt", "a:3"])
@pytest.mark.parametrize("share", [1.0, 0.25, 3.0, 1 / 3, 1234567.0, 1e-9])
def test_a_share_is_written_as_it_is_read(name: str, share: float) -> None:
    assert share_of(with_share(name, share)) == (name, share)


def test_a_share_of_one_is_not_written() -> None:
    assert with_share("c4", 1.0) == "c4"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 1001])
@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.2, 0.3), (1.0,) * 7, (1e-3, 5.0)])
def test_parts_add_up_and_are_next_to_their_shares(count: int, shares: tuple[float, ...]) -> None:
    parts = split(count, {str(number): share for number, share in enumerate(shares)})
    assert sum(parts.values()) == count
    assert min(parts.values()) > 0 or count < len(shares)
    for part, share in zip(parts.values(), shares, strict=True):
        assert abs(part - count * share / sum(shares)) <= 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_small_share_is_a_window_at_least(order: int) -> None:
    shares = dict([("large", 199.0), ("small", 1.0)][::order])
    assert split(64, shares) == {"large": 63, "small": 1}


@pytest.mark.parametrize("line", ["", " ", ",", [""], [" ", ","]])
@pytest.mark.parametrize("schema", [CalibrationConfig, RecoveryConfig])
def test_a_line_without_a_text_is_refused(line: Any, schema: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="names no text; name one"):
        schema.model_validate({"text": line})


@pytest.mark.parametrize("text", ["a.txt:2,c4", ["a.txt:2", "c4"], ("a.txt:2", "c4")])
def test_calibration_texts_are_written_as_a_line_and_read_again(text: Any) -> None:
    config = CalibrationConfig.model_validate({"text": text})
    assert config.text == ("a.txt:2", "c4")
    assert config.model_dump(mode="json")["text"] == "a.txt:2,c4"
    assert CalibrationConfig.model_validate_json(config.model_dump_json()) == config


def test_no_text_for_gptq_may_be_written_as_null() -> None:
    asked = {"checkpoint": "m", "scheme": "W4A16", "output": "out", "calibration": None}
    assert QuantizationConfig.model_validate(asked).calibration == ()
