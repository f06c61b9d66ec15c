"""docs/architectures.md says what the program derives, of every kind that is tested."""

import re

import pytest

from tests.campaigns.architectures import row
from tests.contract import CHECKS
from tests.documents import ROOT
from tests.kinds import KINDS
from workers.model.kinds import TESTED

PAGE = (ROOT / "docs" / "architectures.md").read_text()


def test_the_page_has_every_kind_and_all_of_them_passed() -> None:
    found = re.findall(r"^\| `([\w.-]+)` \| (\d) of (\d) \|", PAGE, re.MULTILINE)
    assert [kind for kind, _, _ in found] == TESTED
    assert {(int(passed), int(of)) for _, passed, of in found} == {(len(CHECKS), len(CHECKS))}
    assert f"The {len(TESTED)} kinds below" in PAGE


def test_what_every_run_of_the_tests_checks_is_listed() -> None:
    assert set(KINDS) < set(TESTED)
    assert len(KINDS) >= 50


@pytest.mark.slow
def test_the_page_says_what_is_derived() -> None:
    rows = set(PAGE.splitlines())
    assert [kind for kind in TESTED if row(kind, list(CHECKS)) not in rows] == []
