"""From lm-eval's dictionaries to our schemas, and the differences between two models."""

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from statistics import fmean, stdev
from types import FunctionType
from typing import Any

from schemas.errors import NumericsError
from schemas.result.tasks import Answer, Metric, Row, Score, TaskResult

_ROUNDING = 1e-9  # relative, between two ways to add the scores of documents


def task_result(
    found: Mapping[str, Any], name: str, model: str, lm_eval: str, seconds: float
) -> TaskResult:
    """Return the result of one task from what lm-eval's `simple_evaluate` returned.

    Raises NumericsError if a log-likelihood is not finite: lm-eval would take it for an answer.
    """
    samples = found["samples"][name]
    for sample in samples:
        _require_finite(sample, name, model)
    return TaskResult(
        model=model,
        task=name,
        version=str(found["versions"][name]),
        lm_eval=lm_eval,
        documents=found["n-samples"][name]["effective"],
        fewshot=found["n-shot"][name],
        metrics=_metrics(found["results"][name], found["higher_is_better"][name]),
        answers=tuple(_answer(sample) for sample in samples),
        seconds=seconds,
    )


def group_result(
    name: str, version: str, row: Mapping[str, Any], members: Sequence[TaskResult]
) -> TaskResult:
    """Return the result of a group from lm-eval's `row` of it; `members` are those of its tasks."""
    better = {m.name: m.higher_is_better for member in members for m in member.metrics}
    shots = {member.fewshot for member in members}
    return TaskResult(
        model=members[0].model,
        task=name,
        version=version,
        lm_eval=members[0].lm_eval,
        documents=row["sample_len"],
        fewshot=shots.pop() if len(shots) == 1 else None,
        metrics=_metrics(row, better),
        answers=(),
        seconds=math.fsum(member.seconds for member in members),
    )


def row_of(result: TaskResult) -> dict[str, Any]:
    """Return a result as the row that lm-eval aggregates groups from."""
    row: dict[str, Any] = {"sample_len": result.documents}
    for metric in result.metrics:
        row[f"{metric.name},{metric.filter}"] = metric.value
        stderr = "N/A" if metric.stderr is None else metric.stderr
        row[f"{metric.name}_stderr,{metric.filter}"] = stderr
    return row


def rows(models: Sequence[Sequence[TaskResult]]) -> tuple[Row, ...]:
    """Return a row for every metric of every task, in the order of the first model's results."""
    first, last = models[0], models[-1]
    found = []
    for number, result in enumerate(first):
        for place, metric in enumerate(result.metrics):
            scores = [results[number].metrics[place] for results in models]
            found.append(
                Row(
                    task=result.task,
                    metric=metric.name,
                    filter=metric.filter,
                    version=result.version,
                    documents=result.documents,
                    fewshot=result.fewshot,
                    higher_is_better=metric.higher_is_better,
                    scores=tuple(Score(value=s.value, stderr=s.stderr) for s in scores),
                    difference=difference(result, last[number], place) if models[1:] else None,
                )
            )
    return tuple(found)


def difference(base: TaskResult, other: TaskResult, place: int) -> Score:
    """Return the paired difference, other - base, in the metric at a place.

    A metric that is the mean of one score per document has as standard error that of the mean of
    the differences by document, s / sqrt(n). What the documents have in common, as being easy for
    both models, is not in it, so it is smaller than that of two separate measurements.
    """
    before, after = base.metrics[place], other.metrics[place]
    paired = [_scores(base, before), _scores(other, after)]
    stderr = None
    if all(map(_is_mean, (before, after), paired)) and paired[0].keys() == paired[1].keys():
        differences = [paired[1][document] - score for document, score in paired[0].items()]
        if len(differences) > 1:
            stderr = stdev(differences) / math.sqrt(len(differences))
    return Score(value=after.value - before.value, stderr=stderr)


def _scores(result: TaskResult, metric: Metric) -> dict[int, float]:
    """Return a metric's score of each document."""
    return {
        answer.document: answer.scores[metric.name]
        for answer in result.answers
        if answer.filter == metric.filter and metric.name in answer.scores
    }


def _is_mean(metric: Metric, scores: Mapping[int, float]) -> bool:
    found = fmean(scores.values()) if scores else math.nan
    return math.isclose(found, metric.value, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _metrics(row: Mapping[str, Any], better: Mapping[str, bool | None]) -> tuple[Metric, ...]:
    """Return the scores in a row of lm-eval: "acc,none", and beside it "acc_stderr,none"."""
    pairs = [key.split(",") for key in row if "," in key and "_stderr," not in key]
    return tuple(
        Metric(
            name=name,
            filter=kind,
            value=float(row[f"{name},{kind}"]),
            stderr=_number(row.get(f"{name}_stderr,{kind}")),
            higher_is_better=better.get(name),
        )
        for name, kind in pairs
        if _number(row[f"{name},{kind}"]) is not None
    )


def _number(value: object) -> float | None:
    """Return a number; None for what lm-eval writes instead of one."""
    return float(value) if isinstance(value, Real) else None


def _answer(sample: Mapping[str, Any]) -> Answer:
    scores = {name: _number(sample[name]) for name in sample["metrics"]}
    return Answer(
        document=sample["doc_id"],
        filter=sample["filter"],
        doc=as_json(sample["doc"]),
        target=as_json(sample["target"]),
        responses=as_json(sample["filtered_resps"]),
        scores={name: score for name, score in scores.items() if score is not None},
    )


def as_json(value: object) -> str:
    """Return JSON of documents and definitions of tasks, the same in every process."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_named)


def _named(value: Any) -> object:
    """Put into words what JSON has no form for: numbers of numpy, functions, other objects."""
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, (FunctionType, type)):  # it may call all that is in its file
        with contextlib.suppress(OSError, TypeError):  # it has no file
            return [value.__qualname__, Path(inspect.getfile(value)).read_text()]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _require_finite(sample: Mapping[str, Any], task: str, model: str) -> None:
    for likelihood in _numbers(sample["resps"]):
        if not math.isfinite(likelihood):
            raise NumericsError(
                f"task {task}, document {sample['doc_id']}: {model} gives a log-likelihood of "
                f"{likelihood}; the weights are damaged or overflow: evaluate with dtype float32"
            )


def _numbers(responses: object) -> Iterator[float]:
    """Yield the numbers among the responses to a document, which may be texts."""
    if isinstance(responses, (list, tuple)):
        for response in responses:
            yield from _numbers(response)
    elif isinstance(responses, float):
        yield responses
