"""A comparison of methods on a terminal of 80 columns."""

import re

import pytest

from pipeline.cli.tables.comparison import comparison_table
from schemas.result.comparison import ComparisonReport
from tests import reports
from tests.tables import shown


@pytest.mark.parametrize("texts", [1, 2, 3, 4])
def test_no_number_is_broken(texts: int) -> None:
    names = tuple(f"text/{letter}.txt" for letter in "abcd"[:texts])
    scores = tuple(reports.evaluation(13.06, 13.87, kl=0.0885) for _ in names)
    row = reports.compared(evaluations=scores)
    report = ComparisonReport(model="m", texts=names, rows=(row,), seconds={})
    printed = shown(comparison_table(report), width=80)
    assert len(re.findall(r"\b13\.87\b", printed)) == texts
    assert len(re.findall(r"\b0\.0885\b", printed)) == texts
