"""The shares of texts, as people write them."""

import pytest
from pydantic import ValidationError

from schemas.request.recovery import RecoveryConfig
from schemas.request.texts import share_of
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
