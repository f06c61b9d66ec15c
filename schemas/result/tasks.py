"""What models got on tasks, alone and in comparison."""

from pydantic import ConfigDict, Field

from schemas.base import Schema
from schemas.request.groups import DType
from schemas.result.evaluation import EvaluationReport


class _Numbers(Schema):
    """Numbers that JSON has no form for, as an infinite perplexity, are texts in it."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Score(_Numbers):
    """One metric of one model on one task."""

    value: float
    stderr: float | None = Field(description="Standard error; None if lm-eval has none for it")


class Metric(Score):
    """A score, by the names that lm-eval gives to metric and filter."""

    name: str
    filter: str
    higher_is_better: bool | None


class Answer(_Numbers):
    """What a model did with one document, after one filter of the task."""

    document: int = Field(description="Place in the task's split, from 0")
    filter: str
    doc: str = Field(description="The document, as JSON")
    target: str = Field(description="The right answer, as JSON")
    responses: str = Field(description="Log-likelihoods of the choices, or texts, as JSON")
    scores: dict[str, float]


class TaskResult(Schema):
    """One model on one task. `answers` is empty for a group of tasks."""

    model: str
    task: str
    version: str
    lm_eval: str
    documents: int
    fewshot: int | None = Field(description="None for a group whose tasks differ")
    metrics: tuple[Metric, ...]
    answers: tuple[Answer, ...]
    seconds: float


class Row(Schema):
    """One metric of all models on one task.

    `difference` is the last model's value minus the first one's, None for one model. Its standard
    error is of the differences document by document; None unless the metric is a mean over them.
    """

    task: str
    metric: str
    filter: str
    version: str
    documents: int
    fewshot: int | None
    higher_is_better: bool | None
    scores: tuple[Score, ...]
    difference: Score | None


class TaskReport(Schema):
    """All models on the same documents of the same tasks; of two, the first is the baseline.

    `kept` of their results were there before. `text` is their perplexity, if a text was named.
    """

    models: tuple[str, ...] = Field(min_length=1)
    rows: tuple[Row, ...]
    lm_eval: str
    dtype: DType
    limit: int | None
    chat_template: bool
    kept: int
    seconds: float = Field(description="Wall time of this command, without the text")
    text: EvaluationReport | None = None
