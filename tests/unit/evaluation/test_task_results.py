"""Rows and paired differences, from results of two models."""

import json
import math
from functools import partial
from pathlib import Path

import pytest

from schemas.errors import NumericsError
from schemas.result.tasks import Answer, Metric, TaskResult
from workers.evaluation.task_results import as_json, difference, rows, task_result


def result(scores: dict[int, float], value: float | None = None, task: str = "t") -> TaskResult:
    """What a model got; the metric is the mean of `scores` by document, or `value`."""
    answers = tuple(
        Answer(document=n, filter="none", doc="{}", target="", responses="[]", scores={"acc": s})
        for n, s in scores.items()
    )
    mean = sum(scores.values()) / len(scores)
    metric = Metric(
        name="acc",
        filter="none",
        value=mean if value is None else value,
        stderr=0.1,
        higher_is_better=True,
    )
    return TaskResult(
        model="m",
        task=task,
        version="1",
        lm_eval="0",
        documents=len(scores),
        fewshot=0,
        metrics=(metric,),
        answers=answers,
        seconds=1.0,
    )


def test_a_difference_is_taken_document_by_document() -> None:
    base, other = result({0: 1, 1: 0, 2: 1, 3: 1}), result({0: 1, 1: 0, 2: 0, 3: 1})
    found = difference(base, other, 0)
    assert found.value == -0.25
    # Of 0, 0, -1, 0 the variance is (3 / 16 * 4) / 3 = 1 / 4.
    assert found.stderr == pytest.approx(math.sqrt(1 / 4 / 4))
    assert difference(base, base, 0).stderr == 0


def test_the_order_of_the_documents_does_not_matter() -> None:
    base, other = result({0: 1, 1: 0, 2: 1}), result({2: 1, 1: 0, 0: 1})
    assert difference(base, other, 0).stderr == 0


def test_a_metric_that_is_no_mean_has_a_difference_without_an_error() -> None:
    found = difference(result({0: 1, 1: 0}, value=7.0), result({0: 1, 1: 0}, value=9.0), 0)
    assert (found.value, found.stderr) == (2.0, None)


def test_other_documents_and_single_ones_give_no_error() -> None:
    assert difference(result({0: 1, 1: 0}), result({0: 1, 2: 0}), 0).stderr is None
    assert difference(result({0: 1}), result({0: 0}), 0).stderr is None


def test_rows_have_every_model() -> None:
    base, other = result({0: 1, 1: 0}), result({0: 1, 1: 1})
    [row] = rows([[base], [other]])
    assert [score.value for score in row.scores] == [0.5, 1.0]
    assert row.difference is not None
    assert row.difference.value == 0.5
    [alone] = rows([[base]])
    assert alone.difference is None


@pytest.mark.parametrize("likelihood", [math.nan, -math.inf])
def test_a_likelihood_that_is_not_finite_is_an_error(likelihood: float) -> None:
    sample = {"doc_id": 3, "resps": [[(-1.0, False)], [(likelihood, False)]]}
    with pytest.raises(NumericsError, match=r"task t, document 3: m gives a log-likelihood"):
        task_result({"samples": {"t": [sample]}}, "t", "m", "0", 1.0)


def test_infinite_figures_survive_json() -> None:
    found = result({0: 1, 1: 0}, value=math.inf)
    assert TaskResult.model_validate_json(found.model_dump_json()) == found


def test_json_of_a_definition_has_what_functions_do_and_no_addresses() -> None:
    """With all of the file: a function may call what stands beside it."""
    source = ["result", Path(__file__).read_text()]
    definition = {"f": result, "g": partial(result, {}, value=1), "b": {1}, "m": math.sqrt}
    assert json.loads(as_json(definition)) == {
        "f": source,
        "g": [source, [{}], {"value": 1}],
        "b": "{1}",
        "m": "math.sqrt",
    }
