"""The result of `svdllm compare`."""

from schemas.base import Schema
from schemas.request.methods import Method
from schemas.result.evaluation import EvaluationReport


class Compared(Schema):
    """One method at one ratio; `evaluations` are beside the base, in the order of the texts.

    `predicted` is the increase of the mean token loss that its run predicted, in nats, if it does.
    """

    method: Method
    ratio: float
    removed: float
    parameters: int
    bytes: int
    predicted: float | None
    place: str
    evaluations: tuple[EvaluationReport, ...]


class ComparisonReport(Schema):
    """All methods at all ratios, by ratio; `seconds` of a method are those of this start."""

    model: str
    texts: tuple[str, ...]
    rows: tuple[Compared, ...]
    seconds: dict[Method, float]
