"""The result of `svdllm compare`."""

from schemas.base import Schema
from schemas.request.methods import TITLES
from schemas.result.evaluation import EvaluationReport
from schemas.result.tasks import TaskReport


class Compared(Schema):
    """One method at one ratio, or the base itself in one scheme of fewer bits.

    `evaluations` are beside the base, in the order of the texts; so are `tasks`, if any were asked.
    `predicted` is the increase of the mean token loss that its run predicted, in nats, if it does.
    """

    method: str
    ratio: float
    removed: float
    parameters: int
    bytes: int
    predicted: float | None
    place: str
    evaluations: tuple[EvaluationReport, ...]
    tasks: TaskReport | None = None


def title(method: str) -> str:
    """Return the name of a method, or of the base in a scheme."""
    return next((text for name, text in TITLES.items() if name == method), f"base in {method}")


class ComparisonReport(Schema):
    """All by ratio, which is 0 of what is quantised; `seconds` are those of this start."""

    model: str
    texts: tuple[str, ...]
    rows: tuple[Compared, ...]
    seconds: dict[str, float]
