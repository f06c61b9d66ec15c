"""A short selection of `make fuzz`: every kind of mutation is refused cleanly, or accepted."""

from collections import Counter
from pathlib import Path

import pytest

from tests.campaigns.fuzz import Outcome, cases, clean, validate
from tests.campaigns.fuzz_cases import KINDS, write_base

ROUNDS = 3
# Kinds that leave nothing to accept, whatever the seed.
NEVER = ("weights: cut", "weights: offsets", "weights: huge headers", "folder: pickled weights")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_base(folder)
    return folder


def test_the_base_itself_is_accepted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, next(iter(KINDS)), lambda case: None)
    [(_, outcome)] = [(kind, validate(case)) for kind, case in cases(base, tmp_path, 1, seed=0)]
    assert outcome == Outcome("accepted", "")


@pytest.mark.slow
def test_every_mutation_ends_cleanly(base: Path, tmp_path: Path) -> None:
    found = [(k, validate(case)) for k, case in cases(base, tmp_path, ROUNDS * len(KINDS), seed=1)]
    assert [(kind, outcome) for kind, outcome in found if not clean(outcome)] == []
    words = Counter(outcome.word for _, outcome in found)
    assert words["refused"] > len(found) / 2
    assert words["accepted"] > 0
    assert {outcome.word for kind, outcome in found if kind in NEVER} == {"refused"}
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_clean_is_seen(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise KeyError("x")

    def write(_: object) -> None:
        (tmp_path / "case-1" / "stray").write_text("")

    for number, (check, word) in enumerate(((fail, "traceback"), (write, "file outside"))):
        monkeypatch.setattr("tests.campaigns.fuzz.check", check)
        monkeypatch.setitem(KINDS, list(KINDS)[number], lambda case: None)
        outcomes = [validate(case) for _, case in cases(base, tmp_path, 2, seed=0)]
        assert outcomes[number].word == word
        assert not clean(outcomes[number])
