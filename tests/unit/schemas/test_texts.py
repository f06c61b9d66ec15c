"""The shares of texts, as people write them."""

import pytest
from pydantic import ValidationError

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
@pytest.mark.parametrize("share", [1.0, 0.25, 3.0])
def test_a_share_is_written_as_it_is_read(name: str, share: float) -> None:
    assert share_of(with_share(name, share)) == (name, share)


def test_a_share_of_one_is_not_written() -> None:
    assert with_share("c4", 1.0) == "c4"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 1001])
@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.2, 0.3), (1.0,) * 7, (1e-3, 5.0)])
def test_parts_add_up_and_are_next_to_their_shares(count: int, shares: tuple[float, ...]) -> None:
    parts = split(count, {str(number): share for number, share in enumerate(shares)})
    assert sum(parts.values()) == count
    for part, share in zip(parts.values(), shares, strict=True):
        assert abs(part - count * share / sum(shares)) <= 1
